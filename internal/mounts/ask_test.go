package mounts

import (
	"errors"
	"testing"
)

// A program that runs no hidden commands, as this one, would start itself in place of one, and again in there.
func TestProgramThatDoesNotAnswer(t *testing.T) {
	if _, err := runHidden(nil, askCommand, t.TempDir()); !errors.Is(err, errDoesNotAnswer) {
		t.Error(err)
	}
}
