package vhdx

import "github.com/vhdxfs/vhdxfs/vhdx/imagefile"

// File is an open image file.
type File = imagefile.File

// LockMode says how an image and its parents are locked against other programs.
type LockMode = imagefile.LockMode

// The modes of Options.Lock; "" is LockLease or LockOn, as the file system is shared or not.
const (
	LockOn  = imagefile.LockOn  // an image that another program uses is refused
	LockTry = imagefile.LockTry // such an image is still used
	LockOff = imagefile.LockOff // no lock is taken or looked for

	LockLease = imagefile.LockLease // as LockOn, and an image that is written is kept from other hosts by a lease
)
