package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// optionNames lists the options about what is asked for, those of other programs left out.
func optionNames(about aboutness) []string {
	var names []string
	for _, t := range optionTable {
		if t.about&about != 0 {
			names = append(names, t.name)
		}
	}
	return names
}

// completeOptions has the shell complete -o by the options' names, and behind a name by those of its values that are
// words.
func completeOptions(cmd *cobra.Command, about aboutness) {
	complete := func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		done := typed[:strings.LastIndexByte(typed, ',')+1]
		var words []string
		for _, t := range optionTable {
			if t.about&about == 0 || t.help == "" {
				continue
			}
			word := done + t.name
			if t.value != "" {
				word += "="
			}
			if t.value == "" || !strings.HasPrefix(typed, word) {
				words = append(words, word+"\t"+strings.ReplaceAll(t.help, "\n", " "))
				continue
			}
			for v := range strings.SplitSeq(t.value, "|") {
				if v == strings.ToLower(v) { // others, such as FILE, stand for something
					words = append(words, word+v)
				}
			}
		}
		return words, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
	if err := cmd.RegisterFlagCompletionFunc("options", complete); err != nil {
		panic(err) // a command without the flag: every start of the program would show it
	}
}

func optionsHelp() string {
	const column = 24
	var b strings.Builder
	for _, t := range optionTable {
		if t.help == "" {
			continue
		}
		name := t.name
		if t.value != "" {
			name += "=" + t.value
		}
		for i, line := range strings.Split(t.help, "\n") {
			if i == 0 && len(name) > column {
				fmt.Fprintf(&b, "  %s\n", name)
				name = ""
			}
			fmt.Fprintf(&b, "  %-*s %s\n", column, name, line)
			name = ""
		}
	}
	for _, help := range otherOptionsHelp {
		fmt.Fprintf(&b, "  %s\n", strings.ReplaceAll(help, "\n", "\n  "))
	}
	return b.String()
}

// otherOptionsHelp explains the options that are hidden in the table.
var otherOptionsHelp = []string{
	"nosuid, nodev, noexec, noatime, ... and their opposites, as mount(8) has them; nosuid and nodev are\non by default",
	"auto, noauto, user, users, nofail, _netdev, comment=, x-*, ... are accepted for fstab and not used",
}
