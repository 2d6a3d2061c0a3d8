package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// The version of a release, and the commit that the program was built from. internal/scripts/build sets them.
var version, revision string

// buildVersion returns the version, or what is known of the source that the program was built from.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	switch {
	case ok && info.Main.Version != "" && info.Main.Version != "(devel)": // by go install MODULE@VERSION
		return info.Main.Version
	case revision != "":
		return "(devel) " + revision
	}
	return "(devel)"
}

func newVersion() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "version [--json]",
		Short:             "Print the version",
		Example:           "  vhdxfs version",
		Args:              exactArgs(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), map[string]string{"version": buildVersion(), "go": runtime.Version()})
			}
			return printVersion(cmd, args)
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

func printVersion(cmd *cobra.Command, _ []string) error {
	_, err := fmt.Fprintln(cmd.OutOrStdout(), "vhdxfs", buildVersion())
	return err
}

// addVersionFlag has cmd print the version if that is asked for, with any arguments. Of cobra's own flag only a
// template changes the words (see printUsage), and its letter would be -v, which is mount(8)'s.
func addVersionFlag(cmd *cobra.Command) {
	wanted := cmd.Flags().Bool("version", false, "print the version")
	checkArgs, run := cmd.Args, cmd.RunE
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if *wanted {
			return nil
		}
		return checkArgs(cmd, args)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *wanted {
			return printVersion(cmd, args)
		}
		return run(cmd, args)
	}
}
