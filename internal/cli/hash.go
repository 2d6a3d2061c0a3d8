package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/hash"
	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// hashCommand computes and checks digests of a disk.
type hashCommand struct {
	options             []string
	format, list, check string
	noWhole             bool
	force, json         bool
	workers, limit      int

	blocks *newfile.File // the list that is being written; nil for none, or standard output
}

func newHash() *cobra.Command {
	c := hashCommand{limit: 10}
	cmd := &cobra.Command{
		Use:   "hash [flags] IMAGE",
		Short: "Compute or check the SHA-256 of a disk",
		Long: `Print the SHA-256 of a disk, the same as sha256sum prints for disk.raw. IMAGE is a VHDX image with its parents, a raw
file, a block device or a mount point. Ranges that the image does not hold are not read, but to hash their zeros takes time
too.

With --blocks, also write a list of the digests of all blocks of 1 MiB that are not zero. With --check, compare the disk with such
a list and print the ranges that differ; zeros are skipped. --check also takes what hash or sha256sum prints.`,
		Example: `  vhdxfs hash disk.vhdx
  vhdxfs hash --blocks monday.list disk.vhdx
  vhdxfs hash --check monday.list copy.vhdx`,
		Args:              exactArgs("IMAGE"),
		RunE:              func(cmd *cobra.Command, args []string) error { return c.run(cmd, args[0]) },
		ValidArgsFunction: completeReadable,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVarP(&c.format, "format", "f", "", "`FORMAT` of IMAGE: vhdx, vhd or raw; detected by default")
	f.StringVar(&c.list, "blocks", "", "write the digests of the blocks to `FILE`; - is standard output, which then has nothing else")
	f.BoolVar(&c.noWhole, "no-whole", false, "with --blocks: do not compute the digest of the whole disk")
	f.StringVar(&c.check, "check", "", "compare the disk with the digests in `FILE`; the exit status is 5 if it differs")
	f.IntVar(&c.limit, "limit", c.limit, "with --check: list at most `N` ranges")
	f.BoolVar(&c.force, "force", false, "replace an existing list")
	f.IntVar(&c.workers, "workers", hash.DefaultWorkers, "read `N` blocks of the disk at once")
	addJSON(cmd, &c.json)
	addImageOptions(cmd, &c.options)
	completeFlag(cmd, "format", disk.Formats...)
	return cmd
}

// A hashReport is what the JSON says.
type hashReport struct {
	Path   string       `json:"path"`
	Size   int64        `json:"size"`
	Data   int64        `json:"data_bytes"`
	Whole  string       `json:"sha256,omitempty"`
	Blocks string       `json:"blocks,omitempty"`
	Check  *hashChecked `json:"check,omitempty"`
}

// A hashChecked is the result of a comparison with a list.
type hashChecked struct {
	List      string      `json:"list"`
	Equal     bool        `json:"equal"`
	ListSize  int64       `json:"list_size,omitempty"` // of the disk that the list is of
	Different int64       `json:"different_bytes"`
	Count     int64       `json:"different_ranges"`
	Ranges    []hashRange `json:"ranges"`
}

type hashRange struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

func (c *hashCommand) run(cmd *cobra.Command, name string) (err error) {
	switch {
	case c.workers < 1 || c.workers > 256:
		return usageError("--workers %d: give 1 to 256", c.workers)
	case c.check != "" && c.list != "":
		return usageError("--blocks and --check exclude each other")
	case c.noWhole && c.list == "":
		return usageError("--no-whole needs --blocks")
	case c.json && c.list == standardStream:
		return usageError("--json and --blocks - exclude each other")
	}
	o, err := openOptions(c.options)
	if err != nil {
		return err
	}
	paths, err := disksNamed([]string{name})
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	defer func() { err = errors.Join(err, c.discard()) }()
	err = beside(cmd, o, paths, func(o vhdx.Options) error { return c.do(cmd, ctx, name, paths, o) })
	if c.blocks != nil && err == nil {
		err = c.blocks.Commit()
		c.blocks = nil
	}
	return createError(interrupted(err, "nothing was changed"))
}

// discard removes a list that is not complete.
func (c *hashCommand) discard() error {
	if c.blocks == nil {
		return nil
	}
	err := c.blocks.Discard()
	c.blocks = nil
	return err
}

// do opens the disk and does what is asked for. It may be called again; see beside.
func (c *hashCommand) do(cmd *cobra.Command, ctx context.Context, name string, paths []string, o vhdx.Options) (err error) {
	var list *hash.ListReader
	if c.check != "" {
		in, err := openList(ctx, c.check)
		if err != nil {
			return err
		}
		defer in.Close()
		if list, err = hash.ReadList(in); err != nil {
			return c.listError(ctx, err)
		}
	}
	if c.list == "" || c.list == standardStream { // else a file has to be given its name in the end
		confineReader(cmd.Context(), paths, o)
	}
	d, err := disk.Open(paths[0], disk.Format(c.format), o)
	if err != nil {
		return createError(rawAdvice(withAdvice(err), "-f"))
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	p := newProgress(cmd)
	defer p.end()
	opts := hash.Options{Workers: c.workers, Whole: !c.noWhole, Phase: p.phase, Progress: p.add}
	r := hashReport{Path: name, Size: d.Size(), Blocks: c.list}
	if list != nil {
		return c.compare(cmd, ctx, d, list, opts, r, p)
	}
	result, err := c.compute(cmd, ctx, d, opts)
	if err != nil {
		return err
	}
	p.end()
	r.Data = result.Data
	if result.Whole != nil {
		r.Whole = result.Whole.String()
	}
	w := cmd.OutOrStdout()
	switch {
	case c.json:
		return writeJSON(w, r)
	case c.list == standardStream, result.Whole == nil:
		return nil
	}
	_, err = fmt.Fprintf(w, "%s  %s\n", r.Whole, printable(name))
	return err
}

// openList opens a list, which may come through a FIFO. When ctx ends, it waits for no writer any more, and the file is closed.
func openList(ctx context.Context, path string) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result, 1)
	go func() {
		defer fault.Then(func(err error) { done <- result{err: err} })
		f, err := os.Open(path)
		done <- result{f, err}
	}()
	select {
	case r := <-done:
		if r.err == nil {
			context.AfterFunc(ctx, func() { r.file.Close() })
		}
		return r.file, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// compute computes the digests, and writes the list.
func (c *hashCommand) compute(cmd *cobra.Command, ctx context.Context, d *disk.Disk, o hash.Options) (*hash.Result, error) {
	if c.list == "" {
		return hash.Disk(ctx, d, o)
	}
	out := io.Writer(cmd.OutOrStdout())
	if c.list == standardStream {
		if err := checkOutput(out); err != nil {
			return nil, err
		}
	} else {
		inputs, err := d.Access()
		if err == nil {
			err = c.discard() // of an attempt before
		}
		if err == nil {
			c.blocks, err = newfile.Create(c.list, newfile.Options{Replace: c.force, Inputs: inputs})
		}
		if err != nil {
			return nil, err
		}
		out = c.blocks
	}
	list := hash.NewListWriter(out, d.Size())
	o.Block = list.Block
	r, err := hash.Disk(ctx, d, o)
	if err == nil {
		err = list.End(r.Whole)
	}
	return r, err
}

// compare compares the disk with the list.
func (c *hashCommand) compare(cmd *cobra.Command, ctx context.Context, d *disk.Disk, list *hash.ListReader, o hash.Options, r hashReport, p *progress) error {
	k := &hashChecked{List: c.check, ListSize: max(list.Size, 0), Ranges: []hashRange{}}
	r.Check = k
	result, err := hash.Check(ctx, d, list, o, func(off, n int64) error {
		k.Different += n
		k.Count++
		if len(k.Ranges) < c.limit {
			k.Ranges = append(k.Ranges, hashRange{off, n})
		}
		return nil
	})
	p.end()
	if err != nil {
		return c.listError(ctx, err)
	}
	k.Equal, r.Data = k.Count == 0, result.Data
	if result.Whole != nil {
		r.Whole = result.Whole.String()
	}
	if c.json {
		err = writeJSON(cmd.OutOrStdout(), r)
	} else {
		err = k.print(cmd.OutOrStdout(), sizesOf(cmd), r, list.Blocks())
	}
	if err == nil && !k.Equal {
		err = &statusError{statusDiffers, nil} // it has been said
	}
	return err
}

func (k *hashChecked) print(w io.Writer, size sizeWriter, r hashReport, blocks bool) error {
	for _, d := range k.Ranges {
		if !blocks {
			break // it is the whole disk
		}
		if _, err := fmt.Fprintf(w, "%s at %#x differs\n", size(d.Length), d.Offset); err != nil {
			return err
		}
	}
	verdict := "the disk is as listed in " + printable(k.List)
	switch {
	case k.Count == 0:
	case !blocks:
		verdict = fmt.Sprintf("the disk differs from the one in %s; its SHA-256 is %s", printable(k.List), r.Whole)
	default:
		verdict = fmt.Sprintf("the disk differs from %s in %s of blocks, %s in total", printable(k.List), plural(int(k.Count), "range"), size(k.Different))
		if k.ListSize != r.Size {
			verdict += fmt.Sprintf("; its size is %s, and was %s", size(r.Size), size(k.ListSize))
		}
	}
	_, err := fmt.Fprintf(w, "%s: %s\n", printable(r.Path), verdict)
	return err
}

// listError names the list in an error about it, unless ctx has ended and the list was closed because of that.
func (c *hashCommand) listError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, hash.ErrList) {
		return fmt.Errorf("%s: %w", c.check, err)
	}
	return err
}
