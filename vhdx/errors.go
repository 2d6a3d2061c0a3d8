package vhdx

import (
	"errors"

	"vhdxfs/internal/ondisk"
)

// FormatError says which structure of an image broke which rule. It matches ErrCorrupt.
type FormatError = ondisk.FormatError

// What a caller can act on.
var (
	ErrCorrupt  = ondisk.ErrCorrupt
	ErrReadOnly = errors.New("the image is open read-only")
	ErrLocked   = errors.New("another program has the image open")
)
