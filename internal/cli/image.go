package cli

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// An imageCommand is what the commands that look at an image have in common.
type imageCommand struct {
	options []string
	json    bool
}

// command completes cmd with the argument, the flags and the parsing that all of them share.
func (c *imageCommand) command(cmd *cobra.Command, run func(cmd *cobra.Command, paths []string, o vhdx.Options) error) *cobra.Command {
	if cmd.Args == nil {
		cmd.Args = exactArgs("IMAGE")
	}
	cmd.ValidArgsFunction = completeReadable
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o, err := openOptions(c.options)
		if err != nil {
			return err
		}
		paths, err := imagesNamed(args)
		if err != nil {
			return err
		}
		return beside(cmd, o, paths, func(o vhdx.Options) error { return run(cmd, paths, o) })
	}
	addJSON(cmd, &c.json)
	addImageOptions(cmd, &c.options)
	return cmd
}

// withImage opens an image for what do has to look at.
func withImage(path string, o vhdx.Options, do func(*vhdx.Image) error) (err error) {
	im, err := openLocked(path, o, os.Stderr)
	if err != nil {
		return withAdvice(err)
	}
	defer func() {
		if cerr := im.Close(); err == nil {
			err = cerr
		}
	}()
	return do(im)
}
