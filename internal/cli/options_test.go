package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
)

// The help is made of the table of options: each that is explained is in it, and the lines fit.
func TestOptionsHelp(t *testing.T) {
	help := optionsHelp()
	for _, o := range mountoption.Explained() {
		if !strings.Contains(help, "  "+o.Name) {
			t.Errorf("option %s is not in the help", o.Name)
		}
	}
	for line := range strings.Lines(help) {
		if len(line) > 81 || strings.TrimRight(line, " \n") != strings.TrimSuffix(line, "\n") {
			t.Errorf("help has the line %q", line)
		}
	}
}

// A wrong option is wrong usage for every command, and for a remount, which reports errors as a mount does.
func TestWrongOptionIsWrongUsage(t *testing.T) {
	_, err := openOptions([]string{"xyzzy"})
	if statusOf(err) != statusUsage || statusOf(mountError(err)) != statusUsage {
		t.Errorf("%v: status %d", err, statusOf(err))
	}
	other := errors.New("cannot read the configuration")
	if optionError(other) != other || optionError(nil) != nil {
		t.Error("another error becomes wrong usage")
	}
}
