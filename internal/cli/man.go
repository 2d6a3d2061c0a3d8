package cli

import (
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newMan is for who packages the program: the manual says what --help says.
func newMan() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIRECTORY",
		Short:  "Write manual pages, one for each command, into a directory",
		Hidden: true,
		Args:   exactArgs("DIRECTORY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.DisableAutoGenTag = true // no date: the same source gives the same pages
			return doc.GenManTree(root, &doc.GenManHeader{Section: "8", Source: "vhdxfs"}, args[0])
		},
	}
}
