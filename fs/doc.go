// Package fs serves one virtual disk as a file: a FUSE mount that holds the directory / and, in it, the
// regular file disk.raw with the bytes of the disk. It turns requests into calls of a [Disk] and errors
// into errno, and knows nothing of the image's format.
//
// There are two nodes and they never change, so the package implements the protocol level of go-fuse
// (fuse.RawFileSystem) without a node tree. What a READ needs is set before the first request, so it takes no lock
// here. A change shares one lock with all others, which is held alone while none may begin (fence.go); attributes and the
// log of failures have locks of their own. Any number of requests run at once.
//
// Requests come by a transport of the package's own, which reads the device in the thread that also answers; go-fuse
// decodes all requests but READ, WRITE and INTERRUPT. What the kernel has of the image in its cache is answered
// by the thread that waits for requests; before anything slower another one takes its place.
//
//	READ off, n -> Disk.Resolve -> extents -> the reply
//	                                 one file, large: a pipe filled by splice(2), no copy to user space
//	                                 file:            preadv2(2) into the reply's buffer, at first without waiting
//	                                 zeros:           a shared, never written page of zeros
//
// A read lasts from BeginRead to EndRead, which is called when the kernel has the bytes: until then the space that
// they come from is not used for anything else.
//
//	WRITE         -> Disk.WriteAt, which is done with the request's buffer when it returns
//	FALLOCATE     -> Disk.Discard (PUNCH_HOLE), Zero (ZERO_RANGE) or Allocate
//	FSYNC         -> Disk.Sync; so does a WRITE with O_SYNC or O_DSYNC, or on a mount with sync
//	last RELEASE  -> Disk.Clean, of the handles that are open for writing
//
// Writes pass through the kernel's page cache, and are delayed in it only on request; see capabilities. What a program wrote
// is durable after fsync(2). sync(2) and syncfs(2) do not reach a FUSE server: the kernel has no request for them.
//
// The mount is read-only if the disk is: the kernel refuses what would modify it, and so does every handler.
package fs
