package cli

import (
	"strings"

	"github.com/spf13/cobra"
)

// optionNames lists the options about what is asked for, those of other programs left out.
func optionNames(about scope) []string {
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
func completeOptions(cmd *cobra.Command, about scope) {
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
				words = append(words, word+"\t"+t.help)
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
	var b strings.Builder
	for i := range optionTable {
		if t := &optionTable[i]; t.help != "" {
			writeOption(&b, t)
		}
	}
	b.WriteString("\n")
	for _, help := range otherOptionsHelp {
		for _, line := range wrap(help, helpWidth) {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

func writeOption(b *strings.Builder, t *option) {
	name := t.name
	if t.value != "" {
		name += "=" + t.value
	}
	writeEntry(b, 22, name, t.help)
}

// otherOptionsHelp explains the options that are hidden in the table.
var otherOptionsHelp = []string{
	"nosuid, nodev, noexec, noatime and the like, and their opposites, work as in mount(8). nosuid and nodev are the default.",
	"auto, noauto, user, users, nofail, _netdev, comment= and x-* are accepted for fstab and ignored.",
}
