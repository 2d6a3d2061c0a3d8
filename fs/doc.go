// Package fs serves one virtual disk as a file: a FUSE mount that holds the directory / and, in it, the
// regular file disk.raw with the bytes of the disk. It turns requests into calls of a [Disk] and errors
// into errno, and knows nothing of the image's format.
//
// There are two nodes and they never change, so the package implements the protocol level of go-fuse
// (fuse.RawFileSystem) without a node tree. All state is set before the first request; a request therefore
// takes no lock here, and any number of them run at once.
//
//	READ off, n -> Disk.Resolve -> extents -> the reply
//	                                 one file, large: a pipe filled by splice(2), no copy to user space
//	                                 file:            pread(2) into the reply's buffer
//	                                 zeros:           a shared, never written page of zeros
//
// The mount is read-only: the kernel refuses what would modify it, and so does every handler.
package fs
