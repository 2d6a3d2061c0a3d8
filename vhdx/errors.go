package vhdx

import (
	"errors"

	"vhdxfs/internal/ondisk"
	"vhdxfs/vhdx/imagefile"
)

// FormatError says which structure of an image broke which rule. It matches ErrCorrupt.
type FormatError = ondisk.FormatError

// LockedError says which program keeps an image from being opened. It matches ErrLocked.
type LockedError = imagefile.LockedError

// What a caller can act on.
var (
	ErrCorrupt  = ondisk.ErrCorrupt
	ErrReadOnly = errors.New("the image is open read-only")
	ErrLocked   = imagefile.ErrLocked
)

// finding returns what was found, without the words that say where: for lists of several findings.
func finding(err error) error {
	var fe *FormatError
	if errors.As(err, &fe) {
		return fe.Err
	}
	return err
}

// ruleOf returns the rule that err says is broken, and 0 if it says none.
func ruleOf(err error) ondisk.Rule {
	var np *notParentError
	if errors.As(err, &np) {
		return np.rule
	}
	var fe *FormatError
	if errors.As(err, &fe) {
		return fe.Rule
	}
	return 0
}
