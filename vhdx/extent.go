package vhdx

import "github.com/vhdxfs/vhdxfs/vhdx/ondisk"

// An Extent is a run of bytes of the virtual disk that lie together in one file, or read as zeros.
type Extent struct {
	DiskOff int64             // byte of the virtual disk
	Len     int64             // bytes
	File    File              // where the bytes are; nil where they read as zeros
	FileOff int64             // byte of File
	Layer   int               // 0 is the image itself, 1 its parent, and so on
	State   ondisk.BlockState // of the block in the layer that decides
}

// End returns the byte of the virtual disk behind the extent.
func (e Extent) End() int64 { return e.DiskOff + e.Len }

// Fd returns the file descriptor from which the extent's bytes can be spliced, and false where they
// have to be read through File: for zeros, and for a file with a log replayed over it.
func (e Extent) Fd() (uintptr, bool) {
	if e.File == nil {
		return 0, false
	}
	return e.File.Fd()
}
