package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/vhdxfs/vhdxfs/internal/convert"
	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// toStdout copies input to standard output.
func (c *convertCommand) toStdout(cmd *cobra.Command, input string, format disk.Format) error {
	out, err := outputStream(cmd)
	format = cmp.Or(format, disk.Raw)
	switch {
	case err != nil:
		return err
	case c.copy.verify:
		return usageError("--verify cannot read standard output again; use vhdxfs compare or vhdxfs hash at the other end")
	}
	switch format {
	case disk.VHDX:
	case disk.VHD:
		if err = c.vhdFlags(cmd); err == nil && vhdx.DiskType(c.layout.diskType) != vhdx.Fixed {
			err = usageError("only a fixed VHD image can be written to standard output; add --type fixed")
		}
	case disk.Raw:
		err = c.imageFlags(cmd, standardStream)
	default:
		err = createError(disk.UnknownFormat(format))
	}
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGPIPE) // a reader that is gone is an error of the write
	defer signal.Reset(syscall.SIGPIPE)
	c.copy.stdout = out
	err = c.copy.copy(cmd, input, standardStream, format, func(ctx context.Context, in convert.Input) (convert.Target, error) {
		w := newPipeWriter(ctx, out)
		switch format {
		case disk.Raw:
			warnSectors(c.copy.warner(cmd), in, "the raw disk", standardStream, 0)
			return convert.NewRawStream(w, in.Disk.Size()), nil
		case disk.VHD:
			size, _, err := c.vhdLayout(cmd, in)
			if err != nil {
				return nil, err
			}
			return convert.NewVHDStream(w, size)
		}
		var o vhdx.CreateOptions
		c.layout.apply(&o)
		warnSectors(c.copy.warner(cmd), in, "the image", standardStream, cmp.Or(o.LogicalSectorSize, in.SectorSize))
		o, err := imageOptions(in, o, false)
		if err != nil {
			return nil, err
		}
		return convert.NewImageStream(ctx, w, in.Disk, o, convert.Options{
			SkipErrors: c.copy.rescue.skipErrors, Phase: c.copy.progress.phase, Progress: c.copy.progress.add,
		})
	})
	return brokenPipe(err)
}

// outputStream returns standard output, for a disk.
func outputStream(cmd *cobra.Command) (*os.File, error) {
	out, ok := cmd.OutOrStdout().(*os.File)
	if !ok || term.IsTerminal(int(out.Fd())) {
		return nil, usageError("standard output is a terminal; redirect it to a pipe or a file")
	}
	return out, checkOutput(out)
}

// checkOutput returns an error where what is written to standard output would be lost because the program was started without one.
// The Go runtime has opened /dev/null in its place then, for reading and writing. A shell opens it for writing alone.
func checkOutput(out io.Writer) error {
	f, ok := out.(*os.File)
	if !ok {
		return nil
	}
	var st unix.Stat_t
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err == nil {
		err = unix.Fstat(int(f.Fd()), &st)
	}
	if err != nil {
		return fmt.Errorf("standard output: %w", err)
	}
	null := unix.Mkdev(1, 3) // as Linux numbers it
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == null && flags&unix.O_ACCMODE == unix.O_RDWR {
		return usageError("standard output is closed, or discarded in /dev/null; redirect it to a pipe or a file")
	}
	return nil
}

// messages returns where a command that copies a disk says what it did.
func (c *copyFlags) messages(cmd *cobra.Command) io.Writer {
	if c.stdout != nil {
		return cmd.ErrOrStderr()
	}
	return cmd.OutOrStdout()
}

// outputName returns the name of the output, for people.
func (c *copyFlags) outputName(output string) string {
	if c.stdout != nil {
		return "standard output"
	}
	return printable(output)
}

// A pipeWriter writes to standard output. A write to a pipe without a reader does not keep the program when ctx ends.
type pipeWriter struct {
	ctx context.Context
	out *os.File
}

func newPipeWriter(ctx context.Context, out *os.File) *pipeWriter {
	_, _ = unix.FcntlInt(out.Fd(), unix.F_SETPIPE_SZ, 1<<20) // fewer and larger writes, where it is a pipe
	return &pipeWriter{ctx, out}
}

func (w *pipeWriter) Write(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer fault.Then(func(err error) { done <- result{err: err} })
		n, err := w.out.Write(p)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return r.n, fmt.Errorf("standard output: %w", r.err)
		}
		return r.n, nil
	case <-w.ctx.Done():
		return 0, context.Cause(w.ctx)
	}
}

// Sync makes the stream durable where it is a file.
func (w *pipeWriter) Sync() error {
	if st, err := w.out.Stat(); err != nil || st.Mode().Type() != 0 && st.Mode().Type() != os.ModeDevice {
		return nil
	}
	return w.out.Sync()
}
