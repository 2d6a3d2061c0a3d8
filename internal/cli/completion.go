package cli

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/active"
)

// shells are those that the command line can be completed in, with what writes the script for each.
var shells = map[string]func(root *cobra.Command, w io.Writer) error{
	"bash": writeBashCompletion,
	"fish": writeFishCompletion,
	"zsh":  writeZshCompletion,
}

func newCompletion() *cobra.Command {
	names := []string{"bash", "fish", "zsh"}
	return &cobra.Command{
		Use:   "completion bash|fish|zsh",
		Short: "Print a completion script for a shell",
		Long: `Print the script with which a shell completes commands, flags and the options of -o. The packages install it. bash
needs the package bash-completion.`,
		Example: `  vhdxfs completion bash >/etc/bash_completion.d/vhdxfs
  vhdxfs completion fish >/etc/fish/completions/vhdxfs.fish
  vhdxfs completion zsh >/usr/local/share/zsh/site-functions/_vhdxfs`,
		Args:              exactArgs("SHELL"),
		ValidArgsFunction: cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(names, args[0]) {
				return usageError("unknown shell %q; give one of %s", args[0], strings.Join(names, ", "))
			}
			return shells[args[0]](cmd.Root(), cmd.OutOrStdout())
		},
	}
}

// writeBashCompletion writes cobra's script for bash, and lets it complete behind a comma, as in -o ro,lock=: bash's
// printf %q puts a backslash before each comma, so that no such word begins with what was typed. Outside of braces a comma
// needs none.
func writeBashCompletion(root *cobra.Command, w io.Writer) error {
	var script bytes.Buffer
	if err := root.GenBashCompletionV2(&script, true); err != nil {
		return err
	}
	const quote = `
__vhdxfs_quote() {
    local word quoted
    for word; do
        printf -v quoted %q "$word"
        printf "%s\n" "${quoted//\\,/,}"
    done
}
`
	_, err := strings.NewReplacer(
		`printf "%q\n" `, `__vhdxfs_quote `,
		`printf "%q" `, `__vhdxfs_quote `,
		`[[ $comp == "$cur"* ]]`, `[[ ${comp//\\,/,} == "$cur"* ]]`,
	).WriteString(w, script.String()+quote+"complete -o default -o nospace -F __start_vhdxfs "+strings.Join(mountNames, " ")+"\n")
	return err
}

// mountNames are the names by which mount(8) finds the program. The scripts complete them as well.
var mountNames = []string{"mount.vhdx", "mount.vhdxfs", "mount.fuse.vhdxfs"}

func writeZshCompletion(root *cobra.Command, w io.Writer) error {
	var script bytes.Buffer
	if err := root.GenZshCompletion(&script); err != nil {
		return err
	}
	names := strings.Join(append([]string{"vhdxfs"}, mountNames...), " ")
	_, err := strings.NewReplacer("#compdef vhdxfs\n", "#compdef "+names+"\n", "compdef _vhdxfs vhdxfs\n", "compdef _vhdxfs "+names+"\n").
		WriteString(w, script.String())
	return err
}

func writeFishCompletion(root *cobra.Command, w io.Writer) error {
	if err := root.GenFishCompletion(w, true); err != nil {
		return err
	}
	for _, name := range mountNames {
		if _, err := fmt.Fprintf(w, "complete -c %s -e\ncomplete -c %[1]s -w vhdxfs\n", name); err != nil {
			return err
		}
	}
	return nil
}

// completeMounted completes what names a mount: images, mount points and devices.
func completeMounted(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	list, err := active.List()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var words []string
	for _, m := range list {
		words = append(words, m.Image+"\tmounted on "+m.MountPoint, m.MountPoint+"\tmount point of "+m.Image)
		for _, d := range m.Devices {
			words = append(words, d.Path+"\tdevice of "+m.Image)
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}
