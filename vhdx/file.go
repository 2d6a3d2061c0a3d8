package vhdx

import "vhdxfs/vhdx/imagefile"

// File is an open image file.
type File = imagefile.File

// LockMode says how an image and its parents are locked against other programs.
type LockMode = imagefile.LockMode

// The modes of Options.Lock. Where a file system knows no locks, all of them go on without.
const (
	LockOn  = imagefile.LockOn  // an image that another program uses is refused
	LockTry = imagefile.LockTry // such an image is still used
	LockOff = imagefile.LockOff // no lock is taken or looked for

	LockLease = imagefile.LockLease // as LockOn, and an image that is written is kept from other hosts by a lease
)
