package vhdx

import (
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// ErrMixed is what opening an image fails with that holds parts of two disks: a merge into it was interrupted. Its child still
// reads right. Options.Mixed opens it nevertheless.
var ErrMixed = errors.New("it is a mix of two disks, because vhdxfs merge or vhdxfs apply was interrupted; run the same command again")

// mixed is how the DataWriteGuid of such an image begins, which is a UUID of version 8 (RFC 9562). So the image says itself what it
// is, even if the child that is merged into it is not at hand. The child knows the GUID as its parent_linkage2.
var mixed = [6]byte{'m', 'e', 'r', 'g', 'e', 0}

// newMixed returns the DataWriteGuid of an image into which a merge begins, another one each time.
func newMixed() uuid.UUID {
	u := uuid.New()
	copy(u[:], mixed[:])
	u[6] = 8<<4 | u[6]&0xf // the version
	return u
}

// IsMixed reports whether an image with the DataWriteGuid is mixed; see ErrMixed.
func IsMixed(dataWrite uuid.UUID) bool {
	return [6]byte(dataWrite[:6]) == mixed && dataWrite.Version() == 8 && dataWrite.Variant() == uuid.RFC4122
}

// refuseMixed returns an error if the image itself is mixed and was to be opened as if it were not. A parent that is mixed is hidden
// by its child, as far as the two differ.
func (o *opener) refuseMixed(l *layer) error {
	if o.Mixed || o.Salvage || !IsMixed(l.headers.header().DataWriteGUID) {
		return nil
	}
	return fmt.Errorf("%s: %w", l.path, ErrMixed)
}
