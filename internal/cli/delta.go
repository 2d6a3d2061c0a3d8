package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vhdxfs/vhdxfs/internal/convert"
	"github.com/vhdxfs/vhdxfs/internal/delta"
	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

// A deltaReport is what diff --output prints with --json.
type deltaReport struct {
	First  string `json:"first"`
	Second string `json:"second"`
	Output string `json:"output"`
	*delta.Result
}

// writeDelta writes what SECOND changes in FIRST to a delta.
func (c *compareFlags) writeDelta(cmd *cobra.Command, names []string, output string, force bool) error {
	if output != standardStream {
		if err := checkImageName(output); err != nil {
			return err
		}
	}
	o, paths, err := c.inputs(names)
	if err != nil {
		return err
	}
	return c.open(paths, o, explainLock, func(a, b *disk.Disk) error {
		return c.deltaOf(cmd, names, [2]*disk.Disk{a, b}, output, force)
	})
}

// deltaOf is writeDelta for two disks that are open.
func (c *compareFlags) deltaOf(cmd *cobra.Command, names []string, disks [2]*disk.Disk, output string, force bool) error {
	if disks[0].Image == nil {
		return usageError("%s is not a VHDX image; a delta needs the identity of one. Convert it first with vhdxfs convert, and apply the delta to a copy of the result", names[0])
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	p := newProgress(cmd)
	options := delta.Options{Workers: c.workers, Phase: p.phase, Progress: p.add}
	write := c.deltaFile
	if output == standardStream {
		write = c.deltaStream
	}
	r, err := write(ctx, cmd, disks, output, force, options)
	p.end()
	if err != nil {
		return createError(interrupted(err, left(output)))
	}
	w, size := cmd.OutOrStdout(), sizesOf(cmd)
	if output == standardStream {
		if w = cmd.ErrOrStderr(); isQuiet(cmd) {
			return nil
		}
	}
	if c.json {
		return writeJSON(w, deltaReport{names[0], names[1], output, r})
	}
	name := "standard output"
	if output != standardStream {
		name = printable(output)
	}
	_, err = fmt.Fprintf(w, "%s: %s in %s, %s of them zeros; apply it to a copy of %s\n", name, size(r.Data+r.Zero), plural(int(r.Ranges), "range"), size(r.Zero), printable(names[0]))
	return err
}

// deltaFile writes a delta to a file, which appears when it is complete.
func (c *compareFlags) deltaFile(ctx context.Context, _ *cobra.Command, disks [2]*disk.Disk, output string, force bool, o delta.Options) (_ *delta.Result, err error) {
	var inputs []safefile.Access
	for _, d := range disks {
		if d.Holds(output) {
			return nil, usageError("%s is also an input", output)
		}
		a, err := d.Access()
		if err != nil {
			return nil, err
		}
		inputs = append(inputs, a...)
	}
	f, err := newfile.Create(output, newfile.Options{Replace: force, Inputs: inputs})
	if err != nil {
		return nil, err
	}
	o.Path = output
	r, err := delta.Write(ctx, f, disks[0], disks[1], o)
	if err != nil {
		return nil, errors.Join(err, f.Discard())
	}
	return r, f.Commit()
}

// deltaStream writes a delta to standard output.
func (c *compareFlags) deltaStream(ctx context.Context, cmd *cobra.Command, disks [2]*disk.Disk, _ string, _ bool, o delta.Options) (*delta.Result, error) {
	out, err := outputStream(cmd)
	if err != nil {
		return nil, err
	}
	for _, d := range disks {
		if d.Holds(fmt.Sprintf("/proc/self/fd/%d", out.Fd())) {
			return nil, usageError("standard output is also an input")
		}
	}
	signal.Ignore(syscall.SIGPIPE) // a reader that is gone is an error of the write
	defer signal.Reset(syscall.SIGPIPE)
	w := newPipeWriter(ctx, out)
	r, err := delta.Write(ctx, w, disks[0], disks[1], o)
	if err == nil {
		err = w.Sync()
	}
	return r, brokenPipe(err)
}

// An applyCommand applies a delta.
type applyCommand struct {
	options     []string
	json, force bool
	copied      string
}

func newApply() *cobra.Command {
	var c applyCommand
	cmd := &cobra.Command{
		Use:   "apply [flags] DELTA BASE",
		Short: "Apply a delta of diff --output to a copy of its first disk",
		Long: `Write what DELTA holds into the image BASE. DELTA is a file that vhdxfs diff --output has written, or - for standard input.
BASE must be the first disk of that diff, or a copy of its file: they are compared by DataWriteGuid. Afterwards BASE shows the
second disk, and has its identity, so that the next delta can be applied. BASE must not be in use.

DELTA is first copied to BASE.apply and verified by a checksum. If it is cut off, damaged or of another disk, nothing is
changed. DELTA itself is never changed. If BASE already has the delta, nothing is done.

If the command is interrupted or the power fails while BASE changes, BASE.apply remains. Then run: vhdxfs apply BASE.apply BASE

If BASE is a device, name the copy with --copy FILE, on a file system that survives a power cut. To finish with it, run:
vhdxfs apply --copy FILE FILE BASE`,
		Example: `  vhdxfs diff monday.vhdx tuesday.vhdx --output tuesday.avhdx
  vhdxfs apply tuesday.avhdx copy.vhdx
  vhdxfs diff a.vhdx b.vhdx --output - | ssh host vhdxfs apply - a.vhdx`,
		Args:              exactArgs("DELTA", "BASE"),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0], args[1]) },
		ValidArgsFunction: completeTwo,
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&c.copied, "copy", "", "where to keep the copy of DELTA meanwhile, a new `FILE`; by default BASE.apply")
	cmd.Flags().BoolVar(&c.force, "force", false, "apply even if children of BASE are lost")
	addChainFlags(cmd, &c.json, &c.options)
	return cmd
}

func (c *applyCommand) run(cmd *cobra.Command, path, base string) error {
	o, err := chainOptions(c.options)
	if err != nil {
		return err
	}
	if path == base {
		return usageError("%s is both the delta and the base", path)
	}
	if c.copied == "" && convert.IsDevice(base) {
		return usageError("%s is a device; give the place of the copy of the delta with --copy", base)
	}
	how := delta.ApplyOptions{Name: path, Copy: c.copied, Open: o}
	how.Check = func() error { return c.checkChildren(path, base, &how) } // another child may come until the base is locked
	if err := how.Check(); err != nil {
		return err
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	p := newProgress(cmd)
	how.Phase, how.Progress = p.phase, p.add
	if path == standardStream {
		how.Name = "standard input"
	}
	r, err := c.apply(ctx, path, base, how)
	p.end()
	if err != nil {
		state := "nothing was changed"
		if _, serr := os.Lstat(how.CopyOf(base)); serr == nil {
			state = how.Unfinished(base)
		}
		return createError(interrupted(explainLock(err), state))
	}
	w, size := cmd.OutOrStdout(), sizesOf(cmd)
	switch {
	case c.json:
		return writeJSON(w, r)
	case r.Already:
		_, err = fmt.Fprintf(w, "%s: already has this delta; nothing was changed\n", printable(base))
	default:
		_, err = fmt.Fprintf(w, "%s: applied, %s written, %s made zero\n", printable(base), size(r.Data), size(r.Zero))
	}
	return err
}

func (c *applyCommand) apply(ctx context.Context, path, base string, o delta.ApplyOptions) (*delta.Applied, error) {
	switch {
	case path == standardStream:
		if term.IsTerminal(int(os.Stdin.Fd())) {
			return nil, usageError("standard input is a terminal, not a delta")
		}
		access, err := stdinAccess()
		if err != nil {
			return nil, err
		}
		return delta.Apply(ctx, os.Stdin, access, base, o)
	case sameFile(path, o.CopyOf(base)):
		return delta.Finish(ctx, base, o)
	}
	f, err := safefile.Open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	access, err := safefile.AccessOf(f)
	if err != nil {
		return nil, err
	}
	return delta.Apply(ctx, f, []safefile.Access{access}, base, o)
}

// checkChildren looks for images that would lose their parent.
func (c *applyCommand) checkChildren(path, base string, o *delta.ApplyOptions) error {
	children, err := childrenBeside(base, o.Open)
	if err != nil || c.force {
		return nil // what is wrong, opening the base tells
	}
	for _, child := range children {
		if !sameFile(child, path) && !sameFile(child, o.CopyOf(base)) {
			return usageError("%s is a child of %s, and would become unusable%s; flatten it first, or use --force", child, base, leftOverNote([]string{base}, o.Open))
		}
	}
	return nil
}

// brokenPipe says in a sentence that the reader of standard output has ended.
func brokenPipe(err error) error {
	if errors.Is(err, syscall.EPIPE) {
		return errors.New("standard output: broken pipe; the program that reads it ended before it had read everything")
	}
	return err
}
