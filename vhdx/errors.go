package vhdx

import (
	"errors"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// FormatError says which structure of an image broke which rule. It matches ErrCorrupt.
type FormatError = ondisk.FormatError

// LockedError says which program keeps an image from being opened. It matches ErrLocked.
type LockedError = imagefile.LockedError

// What a caller can act on. Errors match them by errors.Is.
var (
	ErrCorrupt  = ondisk.ErrCorrupt                         // the image breaks a rule of the format; see FormatError
	ErrReadOnly = errors.New("the image is open read-only") // a change of an image that was opened without Options.Writable
	ErrLocked   = imagefile.ErrLocked                       // another program or host uses the image; see LockedError and InUseError
)

// ruleOf returns the rule that err says is broken, and 0 if it says none.
func ruleOf(err error) ondisk.Rule {
	var np *notParentError
	if errors.As(err, &np) {
		return np.rule
	}
	return ondisk.RuleOf(err)
}
