package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"vhdxfs/vhdx"
)

func newMap() *cobra.Command {
	var c imageCommand
	return c.command(&cobra.Command{
		Use:   "map [--json] [-o LIST] IMAGE",
		Short: "List where the bytes of the disk are: the extents, and the file of the chain that holds each",
		Long: `List the extents of the disk in order: where each begins and how long it is, the state of its blocks,
and which file of the chain holds it, at which offset. Layer 0 is the image itself, layer 1 its parent, and
so on. What no file holds reads as zeros.`,
	}, func(cmd *cobra.Command, path string, o vhdx.Options) error {
		return withImage(path, o, func(im *vhdx.Image) error {
			w := bufio.NewWriter(cmd.OutOrStdout())
			write := writeMapText
			if c.json {
				write = writeMapJSON
			}
			if err := write(w, im); err != nil {
				return errors.Join(err, w.Flush())
			}
			return w.Flush()
		})
	})
}

// A mapEntry is an extent as map --json shows it.
type mapEntry struct {
	Offset     int64  `json:"offset"`
	Length     int64  `json:"length"`
	State      string `json:"state"`
	Layer      int    `json:"layer"`
	Zero       bool   `json:"zero"`
	File       string `json:"file,omitempty"`
	FileOffset *int64 `json:"file_offset,omitempty"`
}

// eachExtent calls do for the extents of the disk in order. They are not gathered: there may be millions.
func eachExtent(im *vhdx.Image, do func(mapEntry) error) error {
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
		m := mapEntry{Offset: off, Length: e.Len, State: e.State.String(), Layer: e.Layer, Zero: e.File == nil}
		if e.File != nil {
			m.FileOffset = &e.FileOff
			if e.Layer < len(files) {
				m.File = files[e.Layer]
			}
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

func writeMapText(w io.Writer, im *vhdx.Image) error {
	const row = "%-18s %-16s %-18s %-5s %-18s %s\n"
	if _, err := fmt.Fprintf(w, row, "OFFSET", "LENGTH", "STATE", "LAYER", "FILE OFFSET", "FILE"); err != nil {
		return err
	}
	return eachExtent(im, func(m mapEntry) error {
		fileOffset, file := "-", "zeros"
		if !m.Zero {
			fileOffset, file = fmt.Sprintf("%#x", *m.FileOffset), m.File
		}
		_, err := fmt.Fprintf(w, row, fmt.Sprintf("%#x", m.Offset), humanSize(m.Length), m.State, fmt.Sprint(m.Layer), fileOffset, file)
		return err
	})
}

// writeMapJSON writes an array with one entry on a line.
func writeMapJSON(w io.Writer, im *vhdx.Image) error {
	separator := "[\n  "
	err := eachExtent(im, func(m mapEntry) error {
		b, err := json.Marshal(m)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "%s%s", separator, b)
		separator = ",\n  "
		return err
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, "\n]")
	return err
}
