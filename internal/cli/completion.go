package cli

import (
	"bytes"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// shells are those that the command line can be completed in, with what writes the script for each.
var shells = map[string]func(root *cobra.Command, w io.Writer) error{
	"bash": writeBashCompletion,
	"fish": func(root *cobra.Command, w io.Writer) error { return root.GenFishCompletion(w, true) },
	"zsh":  (*cobra.Command).GenZshCompletion,
}

func newCompletion() *cobra.Command {
	names := []string{"bash", "fish", "zsh"}
	return &cobra.Command{
		Use:   "completion bash|fish|zsh",
		Short: "Print a script for a shell, which then completes commands and options",
		Long: `Print the script by which a shell completes commands, flags and the options behind -o. The packages have installed it
already. For bash it needs the package bash-completion.`,
		Example: `  vhdxfs completion bash >/etc/bash_completion.d/vhdxfs
  vhdxfs completion fish >/etc/fish/completions/vhdxfs.fish
  vhdxfs completion zsh >/usr/local/share/zsh/site-functions/_vhdxfs`,
		Args:              exactArgs("SHELL"),
		ValidArgsFunction: cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(names, args[0]) {
				return usageError("there is no script for %q, but for %s", args[0], strings.Join(names, ", "))
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
	).WriteString(w, script.String()+quote)
	return err
}
