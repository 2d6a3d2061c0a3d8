package cli

import (
	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
)

// What the flags mean that many commands have.
const (
	jsonHelp         = "print JSON; sizes and offsets are in bytes"
	imageOptionsHelp = "a `LIST` of parent=, parent_dir=, lock= and cache_size=; see vhdxfs help options"
	sizeHelp         = `A SIZE is in bytes or has a unit: K, M, G or T, also written as Ki or KiB. Units are powers of 1024.`
)

// addJSON adds the flag --json.
func addJSON(cmd *cobra.Command, p *bool) { cmd.Flags().BoolVar(p, "json", false, jsonHelp) }

// addImageOptions adds -o with the options that concern opening an image.
func addImageOptions(cmd *cobra.Command, p *[]string) {
	cmd.Flags().StringArrayVarP(p, "options", "o", nil, imageOptionsHelp)
	completeOptions(cmd, mountoption.Image)
}

// isQuiet reports whether -q was given, which every command has.
func isQuiet(cmd *cobra.Command) bool { return isSet(cmd, "quiet") }

// isVerbose reports whether -v was given, which every command has.
func isVerbose(cmd *cobra.Command) bool { return isSet(cmd, "verbose") }

func isSet(cmd *cobra.Command, flag string) bool {
	f := cmd.Flags().Lookup(flag)
	return f != nil && f.Value.String() == "true"
}
