package ondisk

import (
	"errors"
	"fmt"
)

// ErrCorrupt is matched by every error that says an image breaks a rule of the format.
var ErrCorrupt = errors.New("the image is damaged or not a valid VHDX")

// A FormatError says which structure broke which rule, and where. It matches ErrCorrupt.
type FormatError struct {
	Structure string // the term that MS-VHDX uses, such as "region table entry"
	Offset    int64  // file offset of the structure, in bytes
	Rule      Rule   // the rule that is broken
	Err       error  // what was found
}

// Corrupt returns a FormatError whose finding is formatted as by fmt.Errorf.
func Corrupt(r Rule, structure string, off int64, format string, args ...any) *FormatError {
	return &FormatError{Structure: structure, Offset: off, Rule: r, Err: fmt.Errorf(format, args...)}
}

// Error says what was found, where, and which rule and section of MS-VHDX it breaks.
func (e *FormatError) Error() string {
	return fmt.Sprintf("%v (%s, offset %#x, %v, MS-VHDX %s)", e.Err, e.Structure, e.Offset, e.Rule, e.Rule.Section())
}

// Unwrap makes the error match ErrCorrupt as well as its cause.
func (e *FormatError) Unwrap() []error { return []error{ErrCorrupt, e.Err} }

// Finding returns what was found, without the words that say where: for lists of several findings.
func Finding(err error) error {
	var fe *FormatError
	if errors.As(err, &fe) {
		return fe.Err
	}
	return err
}

// RuleOf returns the rule that err says is broken, and 0 if it says none.
func RuleOf(err error) Rule {
	var fe *FormatError
	if errors.As(err, &fe) {
		return fe.Rule
	}
	return 0
}
