package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/vhdxfs/vhdxfs/internal/content"
	"github.com/vhdxfs/vhdxfs/internal/convert"
	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/partition"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// rescueFlags are the flags for what is damaged.
type rescueFlags struct {
	skipErrors, withoutParent         bool
	blockSize, sectorSize, size, bats sizeFlag
}

func (r *rescueFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&r.skipErrors, "skip-errors", false, "copy what is readable of a damaged image; unreadable ranges are filled with zeros and listed, and the exit status is 3")
	f.BoolVar(&r.withoutParent, "without-parent", false, "copy what a differencing image holds itself; what only its parent has is filled with zeros, and the exit status is 3")
	f.Var(&r.blockSize, "assume-block-size", "with --skip-errors: block size, if the image no longer records it")
	f.Var(&r.sectorSize, "assume-sector-size", "with --skip-errors: logical sector size, if the image no longer records it (default 512)")
	f.Var(&r.size, "assume-disk-size", "with --skip-errors: disk size, if the image no longer records it (default: up to the last block)")
	f.Var(&r.bats, "assume-bat", "with --skip-errors: offset of the BAT in the file, if the image no longer records it and it is not found")
}

// apply puts the flags into the options.
func (r *rescueFlags) apply(o *vhdx.Options) error {
	o.Salvage, o.WithoutParent = r.skipErrors, r.withoutParent
	o.Assume = vhdx.Assumed{BlockSize: int64(r.blockSize), SectorSize: int64(r.sectorSize), DiskSize: int64(r.size), BAT: int64(r.bats)}
	if o.Assume != (vhdx.Assumed{}) && !r.skipErrors {
		return usageError("--assume-block-size, --assume-sector-size, --assume-disk-size and --assume-bat need --skip-errors")
	}
	return nil
}

// rawAdvice adds to the error for an input that is no raw disk how to read it as one anyway.
func rawAdvice(err error, flag string) error {
	var foreign *disk.ForeignError
	if errors.As(err, &foreign) && flag != "" {
		return fmt.Errorf("%w; %s raw reads its bytes as a raw disk", err, flag)
	}
	return err
}

// openInput opens what is copied.
func (c *copyFlags) openInput(ctx context.Context, cmd *cobra.Command, input, output string) (convert.Input, error) {
	o, err := openOptions(c.options)
	if err != nil {
		return convert.Input{}, err
	}
	if err := c.rescue.apply(&o); err != nil {
		return convert.Input{}, err
	}
	if input == standardStream {
		return c.openStdin(ctx, cmd, output, o)
	}
	return c.openDisk(input, output, disk.Format(c.input), o)
}

func (c *copyFlags) openDisk(input, output string, format disk.Format, o vhdx.Options) (convert.Input, error) {
	d, err := disk.Open(input, format, o)
	if err != nil {
		err = rawAdvice(withAdvice(err), c.formatFlag)
	}
	var broken *vhdx.FormatError
	switch {
	case !c.mayRescue || !errors.As(err, &broken):
	case broken.Structure == "parent locator":
		err = fmt.Errorf("%w; convert --without-parent copies what the image holds itself", err)
	case !c.rescue.skipErrors && broken.Structure != "file type identifier":
		err = fmt.Errorf("%w; convert --skip-errors may copy what is readable", err)
	}
	if broken != nil && broken.Structure != "parent locator" && format == disk.Auto && c.formatFlag != "" {
		err = fmt.Errorf("%w; %s raw takes the file itself for a raw disk", err, c.formatFlag)
	}
	if err != nil {
		return convert.Input{}, err
	}
	out, name := output, output
	if c.stdout != nil {
		out, name = fmt.Sprintf("/proc/self/fd/%d", c.stdout.Fd()), "standard output"
	}
	if d.Holds(out) {
		return convert.Input{}, errors.Join(usageError("%s is also an input", name), d.Close())
	}
	return convert.Input{Disk: d, SectorSize: d.SectorSize}, nil
}

// peekSize is how much of a stream is looked at: up to the metadata of an image whose log is small.
const peekSize = 4 << 20

// openStdin opens standard input: as a stream where it is a raw disk, or an image that can be copied while it arrives. Any
// other image that comes through a pipe is put into a file without a name, because it has to be read here and there; and
// so is a raw disk that is to be written to a stream, which has to know its size.
func (c *copyFlags) openStdin(ctx context.Context, cmd *cobra.Command, output string, o vhdx.Options) (convert.Input, error) {
	format := disk.Format(c.input)
	switch {
	case term.IsTerminal(int(os.Stdin.Fd())):
		return convert.Input{}, usageError("standard input is a terminal, not a disk")
	case format != disk.Auto && !slices.Contains(disk.Formats, string(format)):
		return convert.Input{}, disk.UnknownFormat(format)
	}
	in := bufio.NewReaderSize(os.Stdin, peekSize)
	head, err := peek(ctx, in)
	if err != nil {
		return convert.Input{}, err
	}
	if format == disk.Auto {
		kind, err := content.Identify(bytes.NewReader(head), int64(len(head)))
		if err == nil {
			format, err = disk.FormatOf(kind, standardStream)
		}
		if err != nil {
			return convert.Input{}, rawAdvice(err, c.formatFlag)
		}
	}
	from, err := stdinAccess()
	if err != nil {
		return convert.Input{}, err
	}
	if format == disk.Raw {
		sector, err := disk.TableSectors(bytes.NewReader(head), int64(len(head)))
		if err != nil {
			return convert.Input{}, err
		}
		var r io.Reader = in
		if c.input == "" {
			r = &endReader{r: in, head: bytes.Clone(head[:min(len(head), 1<<20)]), sector: cmp.Or(sector, 512), flag: c.formatFlag}
		}
		if c.stdout == nil {
			return convert.Input{Stream: r, SectorSize: sector, From: from}, nil
		}
		return c.spooled(ctx, cmd, r, output, disk.Raw, o, rewound(len(head)))
	}
	switch {
	case len(head) == 0:
		return convert.Input{}, usageError("standard input is empty")
	case format == disk.VHD:
		return c.spooled(ctx, cmd, in, output, disk.VHD, o, rewound(len(head)))
	}
	return c.openStdinImage(ctx, cmd, in, from, output, o, rewound(len(head)))
}

// openStdinImage opens the image that comes from standard input.
func (c *copyFlags) openStdinImage(ctx context.Context, cmd *cobra.Command, in io.Reader, from []safefile.Access, output string, o vhdx.Options, isFile bool) (convert.Input, error) {
	if !isFile && c.stdout == nil && !o.Salvage && !o.WithoutParent {
		front, all, err := readFront(ctx, in)
		switch {
		case err != nil:
			return convert.Input{}, withAdvice(err)
		case front != nil:
			return convert.Input{Front: front, SectorSize: front.Image.SectorSize(), From: from}, nil
		}
		in = all
	}
	return c.spooled(ctx, cmd, in, output, disk.VHDX, o, isFile)
}

// stdinAccess returns who may use the file or device that standard input is, and nothing for a pipe: that says nothing of what
// goes through it.
func stdinAccess() ([]safefile.Access, error) {
	st, err := os.Stdin.Stat()
	if err != nil || !st.Mode().IsRegular() && st.Mode().Type() != os.ModeDevice {
		return nil, err
	}
	a, err := safefile.AccessOf(os.Stdin)
	return []safefile.Access{a}, err
}

// readFront reads the first part of an image, and does not wait for a stream that gives nothing when ctx ends.
func readFront(ctx context.Context, in io.Reader) (front *disk.Front, all io.Reader, err error) {
	done := make(chan error, 1)
	go func() {
		defer fault.Then(func(err error) { done <- err })
		var err error
		front, all, err = disk.ReadFront("standard input", in)
		done <- err
	}()
	select {
	case err := <-done:
		return front, all, err
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
}

// spooled opens standard input where it is a file that can be read from its begin, and else what the stream in holds.
func (c *copyFlags) spooled(ctx context.Context, cmd *cobra.Command, in io.Reader, output string, format disk.Format, o vhdx.Options, isFile bool) (convert.Input, error) {
	path := fmt.Sprintf("/proc/self/fd/%d", os.Stdin.Fd())
	if !isFile {
		f, err := c.spool(ctx, cmd, in, output)
		if err != nil {
			return convert.Input{}, err
		}
		defer f.Close() // what opens it by its descriptor has one of its own
		path = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	}
	opened, err := c.openDisk(path, output, format, o)
	if err != nil {
		return convert.Input{}, &streamError{path, err}
	}
	return opened, nil
}

// A streamError names standard input where an error names the file that stands for it.
type streamError struct {
	path string
	err  error
}

func (e *streamError) Error() string {
	return strings.ReplaceAll(e.err.Error(), e.path, "standard input")
}
func (e *streamError) Unwrap() error { return e.err }

// rewound reports whether standard input is a regular file or a block device that can be read from its begin, of which n
// bytes were read, or more that are buffered.
func rewound(n int) bool {
	st, err := os.Stdin.Stat()
	if err != nil || !st.Mode().IsRegular() && st.Mode().Type() != os.ModeDevice {
		return false
	}
	at, err := os.Stdin.Seek(0, io.SeekCurrent)
	return err == nil && at == int64(n)
}

// peek returns the first bytes of a stream, and does not wait for one that gives nothing when ctx ends.
func peek(ctx context.Context, in *bufio.Reader) ([]byte, error) {
	type result struct {
		head []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		defer fault.Then(func(err error) { done <- result{err: err} })
		head, err := in.Peek(peekSize)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		done <- result{head, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("read standard input: %w", r.err)
		}
		return r.head, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// spool copies a stream into a file without a name, beside the output where that is a file: there is likely room.
func (c *copyFlags) spool(ctx context.Context, cmd *cobra.Command, in io.Reader, output string) (*os.File, error) {
	dir := filepath.Dir(output)
	if c.stdout != nil || convert.IsDevice(output) {
		dir = overlayDir()
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	f := os.NewFile(uintptr(fd), "standard input")
	if err != nil { // the file system knows no such files
		dir = overlayDir()
		if f, err = os.CreateTemp(dir, "vhdxfs-input-"); err != nil {
			return nil, fmt.Errorf("standard input cannot be copied while it arrives, which needs a temporary file; name another directory with TMPDIR: %w", err)
		}
		if err := os.Remove(f.Name()); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	if !isQuiet(cmd) {
		fmt.Fprintf(cmd.ErrOrStderr(), "vhdxfs: standard input cannot be copied while it arrives; it is first put into a temporary file in %s\n", printable(dir))
	}
	done := make(chan error, 1)
	go func() {
		defer fault.Then(func(err error) { done <- err })
		done <- copySparse(f, in)
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		return nil, context.Cause(ctx) // the file goes with the program
	}
	if _, foreign := errors.AsType[*disk.ForeignError](err); err != nil && !foreign {
		err = fmt.Errorf("copy standard input into a temporary file in %s: %w", dir, err)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// copySparse copies all of in to the empty file f and leaves holes for zeros.
func copySparse(f *os.File, in io.Reader) error {
	b := make([]byte, 1<<20)
	for off := int64(0); ; {
		n, err := io.ReadFull(in, b)
		if p := b[:n]; len(bytes.TrimLeft(p, "\x00")) > 0 {
			if _, err := f.WriteAt(p, off); err != nil {
				return err
			}
		}
		off += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return f.Truncate(off)
		case err != nil:
			return err
		}
	}
}

// An endReader is a stream that fails at its end where it then shows that it was no raw disk, or not all of one.
type endReader struct {
	r      io.Reader
	head   []byte // the first bytes of the disk
	sector int64  // bytes
	size   int64  // bytes so far
	tail   []byte // the last bytes so far
	flag   string // that takes the stream for what it is
}

func (e *endReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.size += int64(n)
	e.tail = append(e.tail, p[:n]...)
	e.tail = append(e.tail[:0], e.tail[max(0, len(e.tail)-content.FooterSize):]...)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	if kind := content.Footer(e.tail); kind != nil {
		return n, rawAdvice(&disk.ForeignError{Path: standardStream, Kind: kind}, e.flag)
	}
	l, ferr := partition.Find(bytes.NewReader(e.head), int64(len(e.head)), e.sector)
	if ferr != nil { // a table that is damaged tells nothing
		return n, err
	}
	use, beyond := l.Beyond(e.size)
	switch {
	case beyond:
		return n, &cutError{e.size, fmt.Sprintf("%s on it ends at %s", use.What, sizes.Exact(use.End)), e.flag}
	case l.GPT != nil && !l.GPT.BackupWithin(e.size):
		return n, &cutError{e.size, "the disk has a GPT whose backup is behind that", e.flag}
	}
	return n, err
}

// A cutError is that of a stream which ends before what is on the disk.
type cutError struct {
	size int64  // bytes
	but  string // what is behind them
	flag string
}

func (e *cutError) Error() string {
	msg := fmt.Sprintf("standard input ends at %s, but %s; was the pipe cut off?", sizes.Exact(e.size), e.but)
	if e.flag != "" {
		msg += " " + e.flag + " raw takes the disk as it is"
	}
	return msg
}

// warnSectors says where the sectors of the output are not those that a partition table of the input counts in.
func warnSectors(warn func(format string, args ...any), in convert.Input, out, output string, asked int64) {
	has := in.SectorSize
	if in.Disk != nil && in.Disk.Warning != "" {
		warn("%s", in.Disk.Warning)
	}
	switch {
	case has == 0:
	case asked != 0 && asked != has:
		warn("the disk has sectors of %d bytes, but %s gets sectors of %d bytes: its partitions will not be found, because the partition table counts in sectors", has, out, asked)
	case asked == 0 && has == 4096 && !convert.IsDevice(output):
		warn("the disk has sectors of 4096 bytes, which a raw file does not record: attach it with losetup --sector-size 4096, " +
			"and convert it back with --logical-sector-size 4096")
	}
}
