package vhdx

// CreateOptions describes a new image. Sizes are in bytes; zero values choose the default.
type CreateOptions struct {
	Size               int64    // of the virtual disk; rounded up to nothing: it must be a multiple of the sector
	Type               DiskType // Dynamic or Fixed
	BlockSize          int64    // default: by Size
	LogicalSectorSize  int64    // default 512
	PhysicalSectorSize int64    // default 4096
	LogSize            int64    // default 1 MiB
	Creator            string
	ZeroBlocks         bool // blocks of a dynamic disk begin in state ZERO instead of NOT_PRESENT
}

// Create makes a new image at path, which must not exist.
func Create(path string, o CreateOptions) error { panic("skeleton") }
