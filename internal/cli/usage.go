package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/spelling"
)

// helpWidth is how wide the lines of a help are, in characters.
const helpWidth = 80

// valueAnnotation is the annotation of a flag that holds the word for its value, such as FILE.
const valueAnnotation = "vhdxfs_value"

// The groups of commands, in the order of the help.
var commandGroups = []struct{ id, title string }{
	{"mount", "Mount"},
	{"look", "Examine an image"},
	{"make", "Create and copy"},
	{"change", "Change an image"},
	{"more", "More"},
}

// commonOptions are the mount options that the help of the program itself explains.
var commonOptions = []string{"ro", "overlay", "parent_dir", "partition", "allow_other"}

// writeHelp writes the help of a command. It is a function, and not a template for cobra: text/template finds methods by
// their names while it runs, so that the linker would have to keep every method in the program. That made it a fifth
// larger, and each mount slower.
func writeHelp(w io.Writer, cmd *cobra.Command) error {
	var b strings.Builder
	writeParagraphs(&b, description(cmd))
	b.WriteString("\nUsage:\n")
	fmt.Fprintf(&b, "  %s\n", cmd.UseLine())
	root := cmd.HasSubCommands()
	if root {
		fmt.Fprintf(&b, "  %s COMMAND [flags] ...\n", cmd.Name())
		for _, g := range commandGroups {
			fmt.Fprintf(&b, "\n%s:\n", g.title)
			for _, c := range cmd.Commands() {
				if c.GroupID == g.id && !c.Hidden {
					writeEntry(&b, 12, c.Name(), c.Short)
				}
			}
		}
	}
	cmd.InheritedFlags() // which has cobra gather them
	b.WriteString("\nFlags:\n")
	writeFlags(&b, cmd.Flags())
	if root {
		b.WriteString("\nOptions most used, for -o:\n")
		explained := mountoption.Explained()
		for _, name := range commonOptions {
			i := slices.IndexFunc(explained, func(o mountoption.Option) bool { return o.Name == name })
			writeOption(&b, explained[i])
		}
	}
	if cmd.HasExample() {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", cmd.Example)
	}
	if root {
		fmt.Fprintf(&b, "\nMore help:\n"+
			"  vhdxfs help COMMAND      a command, with examples and exit statuses\n"+
			"  vhdxfs help options      all options for -o\n"+
			"  vhdxfs help exit-status  what the exit statuses mean\n\n")
		writeParagraphs(&b, "-f means --foreground when mounting, and --input-format when reading a disk, as in qemu-img (convert, compare, diff). "+
			"It never means --force.")
	} else {
		fmt.Fprintf(&b, "\nExit status:\n%s", exitStatusHelp(statusesOf(cmd.Name())))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// description returns the long description of a command, or the short one as a sentence.
func description(cmd *cobra.Command) string {
	if cmd.Long == "" {
		return cmd.Short + "."
	}
	return cmd.Long
}

// writeParagraphs writes text with its lines filled. A paragraph that is indented stays as it is.
func writeParagraphs(b *strings.Builder, text string) {
	for i, p := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			b.WriteString("\n")
		}
		if strings.HasPrefix(p, "  ") {
			b.WriteString(p + "\n")
			continue
		}
		for _, line := range wrap(p, helpWidth) {
			b.WriteString(line + "\n")
		}
	}
}

// writeEntry writes a term and, in a column behind it, what it means.
func writeEntry(b *strings.Builder, column int, term, meaning string) {
	lines := wrap(meaning, helpWidth-column-3)
	if len(term) > column {
		fmt.Fprintf(b, "  %s\n", term)
		term = ""
	}
	for _, line := range lines {
		fmt.Fprintf(b, "  %-*s %s\n", column, term, line)
		term = ""
	}
}

// wrap fills lines of a width. A word that is longer has a line of its own.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

func writeFlags(b *strings.Builder, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		term := "    --" + f.Name
		if f.Shorthand != "" {
			term = "-" + f.Shorthand + ", --" + f.Name
		}
		if v := flagValue(f); v != "" {
			term += " " + v
		}
		writeEntry(b, 22, term, flagHelp(f))
	})
}

// flagValue returns the word for the value of a flag, "" for one without a value.
func flagValue(f *pflag.Flag) string {
	switch {
	case len(f.Annotations[valueAnnotation]) > 0:
		return f.Annotations[valueAnnotation][0]
	case f.Value.Type() == "bool":
		return ""
	}
	return strings.ToUpper(f.Value.Type())
}

// flagHelp returns what a flag does, and the default of a number.
func flagHelp(f *pflag.Flag) string {
	if f.Value.Type() == "int" && f.DefValue != "0" {
		return fmt.Sprintf("%s (default %s)", f.Usage, f.DefValue)
	}
	return f.Usage
}

// finish gives a command what all commands have: help in our words, errors in our words, and flags whose description has
// no backquotes any more, which a completion would show.
func finish(cmd *cobra.Command) {
	cmd.DisableFlagsInUseLine = true
	cmd.Flags().BoolP("help", "h", false, "show this help")
	cmd.SetFlagErrorFunc(flagError)
	name := func(f *pflag.Flag) {
		if value, usage := pflag.UnquoteUsage(f); strings.Contains(f.Usage, "`") {
			f.Usage = usage
			f.Annotations = map[string][]string{valueAnnotation: {value}}
		}
	}
	cmd.Flags().VisitAll(name)
	cmd.PersistentFlags().VisitAll(name)
}

// watchHelp has root, and the commands below it, print their help, and returns a function that returns why that could not
// be written. Cobra does not look at it.
func watchHelp(root *cobra.Command) (helpError func() error) {
	var err error
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { err = writeHelp(cmd.OutOrStdout(), cmd) })
	return func() error { return err }
}

// helpTopics are what help explains beside the commands.
var helpTopics = map[string]func() string{
	"options": func() string {
		return "Options for -o of vhdxfs mount, vhdxfs attach and mount -t vhdx. Separate them\n" +
			"with commas. Put a value that contains a comma in double quotes.\n\n" + optionsHelp()
	},
	"exit-status": func() string { return "Exit status:\n" + exitStatusHelp(exitStatuses) },
}

func newHelp() *cobra.Command {
	topics := []string{"exit-status", "options"}
	return &cobra.Command{
		Use:   "help [COMMAND | options | exit-status]",
		Short: "Show help on a command or a topic",
		Example: `  vhdxfs help attach
  vhdxfs help options`,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return append(commandNames(cmd.Root()), topics...), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return writeHelp(cmd.OutOrStdout(), cmd.Root())
			}
			if topic := helpTopics[args[0]]; topic != nil {
				_, err := io.WriteString(cmd.OutOrStdout(), topic())
				return err
			}
			for _, c := range cmd.Root().Commands() {
				if c.Name() == args[0] || c.HasAlias(args[0]) {
					return writeHelp(cmd.OutOrStdout(), c)
				}
			}
			return usageError("no help on %q%s", args[0], suggestion(args[0], append(commandNames(cmd.Root()), topics...), "vhdxfs help"))
		},
	}
}

// suggestion names the candidate that was probably meant, or the command that lists all of them.
func suggestion(word string, candidates []string, all string) string {
	if n := spelling.Nearest(word, candidates); n != "" {
		return fmt.Sprintf("; did you mean %s?", n)
	}
	return "; see " + all
}

// flagError says what is wrong with a flag, in the words of this program.
func flagError(cmd *cobra.Command, err error) error {
	all := cmd.CommandPath() + " --help"
	switch e := err.(type) {
	case *pflag.NotExistError:
		if e.GetSpecifiedShortnames() != "" {
			return usageError("unknown flag -%.1s; see %s", e.GetSpecifiedName(), all)
		}
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, "--"+f.Name)
			}
		})
		return usageError("unknown flag --%s%s", e.GetSpecifiedName(), suggestion("--"+e.GetSpecifiedName(), names, all))
	case *pflag.ValueRequiredError:
		return usageError("flag %s needs a value: %s; see %s", flagName(e.GetFlag()), flagValue(e.GetFlag()), all)
	case *pflag.InvalidValueError:
		f := e.GetFlag()
		switch f.Value.Type() {
		case "bool":
			return usageError("%s takes no value", flagName(f))
		case "int":
			return usageError("%s %s: give a whole number", flagName(f), e.GetValue())
		}
		return usageError("%s: %w", flagName(f), e.Unwrap())
	}
	return usageError("%w; see %s", err, all)
}

func flagName(f *pflag.Flag) string { return "--" + f.Name }

// commandNames are the commands below cmd that a user may call, in the order of the alphabet.
func commandNames(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	slices.Sort(names)
	return names
}
