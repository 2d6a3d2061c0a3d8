package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/charmbracelet/colorprofile"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/draw"
	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/internal/vhd"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A mapCommand shows where the bytes of a disk are.
type mapCommand struct {
	imageCommand
	qemuJSON, draw, force bool
	svg, png, color       string
}

func newMap() *cobra.Command {
	var c mapCommand
	cmd := c.command(&cobra.Command{
		Use:   "map [flags] IMAGE",
		Short: "List or draw where the bytes of the disk are stored",
		Long: `List the extents of the disk in order: offset, length, kind, the state of the blocks, and the file of the chain and the
offset in it that hold the data. The kind is data, zero (an image of the chain says that it is zero) or hole (no image
holds it). Layer 0 is the image itself, layer 1 its parent, and so on.

--draw draws the disk on the terminal: how much data is in each place, in the color of the file that holds it. Below it
is the file of the image; the colors show which part of the disk is where. A fragmented file is speckled. --svg and --png
write the picture to a file, or to standard output if FILE is -.`,
		Example: `  vhdxfs map --draw child.avhdx
  vhdxfs map --svg disk.svg disk.vhdx`,
	}, func(cmd *cobra.Command, paths []string, o vhdx.Options) error {
		forms := 0
		for _, given := range []bool{c.json, c.qemuJSON, c.draw, c.svg != "" || c.png != ""} {
			if given {
				forms++
			}
		}
		if c.svg != "" && c.svg == c.png {
			return usageError("--svg and --png need different files, not %s twice", c.svg)
		}
		if forms > 1 {
			return usageError("--json, --qemu-json, --draw, and --svg with --png exclude each other")
		}
		if c.svg == "" && c.png == "" {
			confineReader(cmd.Context(), paths, o)
		}
		if disk.IsVHD(paths[0]) {
			return c.showVHD(cmd, paths[0], o)
		}
		return withImage(paths[0], o, func(im *vhdx.Image) error { return c.show(cmd.OutOrStdout(), sizesOf(cmd), im) })
	})
	f := cmd.Flags()
	f.SortFlags = false
	f.BoolVar(&c.qemuJSON, "qemu-json", false, "print JSON in the format of qemu-img map --output=json")
	f.BoolVar(&c.draw, "draw", false, "draw the disk and the file, in the size of the terminal")
	f.StringVar(&c.color, "color", "auto", "`WHEN` --draw uses colors: auto (default), always or never")
	f.StringVar(&c.svg, "svg", "", "draw into the SVG `FILE`")
	f.StringVar(&c.png, "png", "", "draw into the PNG `FILE`")
	f.BoolVar(&c.force, "force", false, "replace an existing picture")
	completeFlag(cmd, "color", "auto", "always", "never")
	return cmd
}

// showVHD lists the extents of a VHD image.
func (c *mapCommand) showVHD(cmd *cobra.Command, path string, o vhdx.Options) (err error) {
	if c.draw || c.svg != "" || c.png != "" {
		return usageError("%s is an old VHD image; only VHDX images can be drawn", path)
	}
	im, err := vhd.Open(path, o)
	if err != nil {
		return withAdvice(explainLock(err))
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	return c.list(cmd.OutOrStdout(), sizesOf(cmd), im)
}

func (c *mapCommand) show(out io.Writer, size sizeWriter, im *vhdx.Image) error {
	switch {
	case c.draw:
		return c.paintTerminal(out, im)
	case c.svg != "" || c.png != "":
		return c.paintFiles(out, im)
	}
	return c.list(out, size, im)
}

// A mapped disk tells where its bytes are.
type mapped interface {
	Info() *vhdx.Info
	Extent(off int64) (vhdx.Extent, error)
}

func (c *mapCommand) list(out io.Writer, size sizeWriter, im mapped) error {
	w := bufio.NewWriter(out)
	list := &jsonList{w: w}
	var err error
	switch {
	case c.json:
		err = eachExtent(im, func(m mapEntry) error { return list.add(m) })
	case c.qemuJSON:
		err = eachExtent(im, func(m mapEntry) error { return list.add(m.qemu()) })
	default:
		list = nil
		err = writeMapText(w, size, im)
	}
	if err == nil && list != nil {
		err = list.end()
	}
	return errors.Join(err, w.Flush())
}

// A mapEntry is an extent as map --json shows it.
type mapEntry struct {
	Offset     int64  `json:"offset"`
	Length     int64  `json:"length"`
	Kind       string `json:"kind"` // data, zero or hole
	State      string `json:"state"`
	Layer      int    `json:"layer"`
	Zero       bool   `json:"zero"`
	File       string `json:"file,omitempty"`
	FileOffset *int64 `json:"file_offset,omitempty"`
}

// A qemuEntry is an extent as qemu-img map shows it.
type qemuEntry struct {
	Start   int64  `json:"start"`
	Length  int64  `json:"length"`
	Depth   int    `json:"depth"`
	Present bool   `json:"present"`
	Zero    bool   `json:"zero"`
	Data    bool   `json:"data"`
	Offset  *int64 `json:"offset,omitempty"`
}

func (m mapEntry) qemu() qemuEntry {
	return qemuEntry{m.Offset, m.Length, m.Layer, m.Kind != "hole", m.Zero, !m.Zero, m.FileOffset}
}

// eachExtent calls do for the extents of the disk in order. They are not gathered: there may be millions.
func eachExtent(im mapped, do func(mapEntry) error) error {
	files := chainPaths(im.Info())
	for off := int64(0); ; {
		e, err := im.Extent(off)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if e.Len <= 0 {
			return fmt.Errorf("the extent at %d has no length", off)
		}
		m := mapEntry{Offset: off, Length: e.Len, Kind: "data", State: e.State.String(), Layer: e.Layer, Zero: e.File == nil}
		switch {
		case e.File != nil:
			m.FileOffset = &e.FileOff
			if e.Layer < len(files) {
				m.File = files[e.Layer]
			}
		case e.State == ondisk.NotPresent:
			m.Kind = "hole"
		default:
			m.Kind = "zero"
		}
		if err := do(m); err != nil {
			return err
		}
		off += e.Len
	}
}

// chainPaths returns the paths of the image and of its parents, by layer.
func chainPaths(in *vhdx.Info) []string {
	paths := []string{in.Path}
	for in.Parent != nil && in.Parent.Image != nil {
		in = in.Parent.Image
		paths = append(paths, in.Path)
	}
	return paths
}

func writeMapText(w io.Writer, size sizeWriter, im mapped) error {
	const row = "%-14s %-12s %-4s %-17s %-5s %-14s %s\n" // which leaves room for a name in 80 columns
	if _, err := fmt.Fprintf(w, row, "OFFSET", "LENGTH", "KIND", "STATE", "LAYER", "FILE OFFSET", "FILE"); err != nil {
		return err
	}
	return eachExtent(im, func(m mapEntry) error {
		fileOffset, file := "-", "-"
		if !m.Zero {
			fileOffset, file = fmt.Sprintf("%#x", *m.FileOffset), printable(m.File)
		}
		_, err := fmt.Fprintf(w, row, fmt.Sprintf("%#x", m.Offset), size(m.Length), m.Kind, m.State, fmt.Sprint(m.Layer), fileOffset, file)
		return err
	})
}

// paintTerminal paints as large as the terminal is, or for 80 by 24 characters.
func (c *mapCommand) paintTerminal(out io.Writer, im *vhdx.Image) error {
	t := draw.Terminal{Width: 80, Height: 24}
	if f, ok := out.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			t.Width, t.Height = w, h
		}
	}
	w := colorprofile.NewWriter(out, os.Environ()) // turns colours into those that the terminal has
	switch c.color {
	case "auto":
	case "always":
		w.Profile = max(w.Profile, colorprofile.ANSI256)
	case "never":
		w.Profile = colorprofile.NoTTY
	default:
		return usageError("--color %s: must be auto, always or never", c.color)
	}
	t.Color = w.Profile > colorprofile.ASCII
	disk, file := t.Grid(len(chainPaths(im.Info())))
	s, err := draw.NewSurvey(im, disk, file)
	if err != nil {
		return err
	}
	return t.Write(w, s)
}

// paintFiles paints into the files that are named, or to out, which is standard output, where the name is "-".
func (c *mapCommand) paintFiles(out io.Writer, im *vhdx.Image) error {
	s, err := draw.NewSurvey(im, draw.DiskCells, draw.FileCells)
	if err != nil {
		return err
	}
	for _, p := range []struct {
		path  string
		paint func(io.Writer, *draw.Survey) error
	}{{c.svg, draw.SVG}, {c.png, draw.PNG}} {
		if p.path == "" {
			continue
		}
		paint := func(w io.Writer) error { return p.paint(w, s) }
		if p.path == standardStream {
			if err := checkOutput(out); err != nil {
				return err
			}
			if err := buffered(out, paint); err != nil {
				return err
			}
			continue
		}
		if im.Holds(p.path) {
			return usageError("output %s is also the image, or one of its parents", p.path)
		}
		inputs, err := im.Access()
		if err != nil {
			return err
		}
		o := newfile.Options{Replace: c.force, Inputs: inputs}
		if err := writeNew(p.path, o, paint); err != nil {
			return createError(err)
		}
	}
	return nil
}

// writeNew makes a file that appears when it is complete.
func writeNew(path string, o newfile.Options, write func(io.Writer) error) error {
	f, err := newfile.Create(path, o)
	if err != nil {
		return err
	}
	if err := buffered(f, write); err != nil {
		return errors.Join(err, f.Discard())
	}
	return f.Commit()
}

// buffered writes to out in large pieces.
func buffered(out io.Writer, write func(io.Writer) error) error {
	w := bufio.NewWriter(out)
	if err := write(w); err != nil {
		return err
	}
	return w.Flush()
}
