package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// helpWidth is how wide the lines of a help become that are not written by hand, in characters.
const helpWidth = 110

// printUsage prints how cmd is used, as cobra does by itself, but with the lines about flags wrapped.
//
// It is a function, and not a template for cobra: text/template finds methods by their names while it runs, so that the
// linker would have to keep every method in the program. That made it a fifth larger, and each mount slower.
func printUsage(cmd *cobra.Command) error {
	var b strings.Builder
	b.WriteString("Usage:")
	if cmd.Runnable() {
		fmt.Fprintf(&b, "\n  %s", cmd.UseLine())
	}
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "\n  %s [command]", cmd.CommandPath())
	}
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(&b, "\n\nAliases:\n  %s", cmd.NameAndAliases())
	}
	if cmd.HasExample() {
		fmt.Fprintf(&b, "\n\nExamples:\n%s", cmd.Example)
	}
	if cmd.HasAvailableSubCommands() {
		b.WriteString("\n\nAvailable Commands:")
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() || c.Name() == "help" {
				fmt.Fprintf(&b, "\n  %-*s %s", c.NamePadding(), c.Name(), c.Short)
			}
		}
	}
	printFlags(&b, "Flags", cmd.LocalFlags())
	printFlags(&b, "Global Flags", cmd.InheritedFlags())
	if cmd.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "\n\nUse %q for more information about a command.", cmd.CommandPath()+" [command] --help")
	}
	_, err := fmt.Fprintln(cmd.OutOrStderr(), b.String())
	return err
}

func printFlags(w io.Writer, title string, flags *pflag.FlagSet) {
	if flags.HasAvailableFlags() {
		fmt.Fprintf(w, "\n\n%s:\n%s", title, strings.TrimRight(flags.FlagUsagesWrapped(helpWidth), " \n"))
	}
}

// watchHelp returns a function that returns why the help of root, or of a command below it, could not be written. Cobra
// prints it without a look at that.
func watchHelp(root *cobra.Command) (helpError func() error) {
	var out firstError
	print := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		out.w = cmd.OutOrStdout()
		cmd.SetOut(&out)
		print(cmd, args)
	})
	return func() error { return out.err }
}

// A firstError writes to w until that fails, and keeps the error.
type firstError struct {
	w   io.Writer
	err error
}

func (f *firstError) Write(p []byte) (n int, err error) {
	if f.err == nil {
		n, f.err = f.w.Write(p)
	}
	return n, f.err
}
