package cli

import (
	"errors"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// openOptions reads the lists of options of a command that only opens images.
func openOptions(lists []string) (vhdx.Options, error) {
	o, err := mountoption.Parse(lists, mountoption.Image)
	if err != nil {
		return vhdx.Options{}, optionError(err)
	}
	return o.Open, nil
}

// optionError gives an error in what the user has given the status of wrong usage.
func optionError(err error) error {
	if _, ok := errors.AsType[*mountoption.UsageError](err); ok {
		return &statusError{statusUsage, err}
	}
	return err
}

// completeOptions has the shell complete the list behind -o.
func completeOptions(cmd *cobra.Command, about mountoption.Scope) {
	complete := func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return mountoption.Complete(typed, about), cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
	if err := cmd.RegisterFlagCompletionFunc("options", complete); err != nil {
		panic(err) // a command without the flag: every start of the program would show it
	}
}

func optionsHelp() string {
	var b strings.Builder
	for _, o := range mountoption.Explained() {
		writeOption(&b, o)
	}
	b.WriteString("\n")
	for _, note := range mountoption.Notes() {
		for _, line := range wrap(note, helpWidth) {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

func writeOption(b *strings.Builder, o mountoption.Option) {
	name := o.Name
	if o.Value != "" {
		name += "=" + o.Value
	}
	writeEntry(b, 22, name, o.Help)
}

// absPath makes a path absolute, since the program leaves the working directory when it is mounted.
func absPath(path string) (string, error) { return filepath.Abs(path) }
