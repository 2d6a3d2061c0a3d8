package cli

import (
	"bufio"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/compare"
)

// A jsonList writes a JSON array, one element on a line, as they come: there may be millions.
type jsonList struct {
	w     io.Writer
	begun bool
}

func (l *jsonList) add(v any) error {
	b, err := encode(v, "")
	if err != nil {
		return err
	}
	separator := "[\n  "
	if l.begun {
		separator = ",\n  "
	}
	l.begun = true
	_, err = fmt.Fprintf(l.w, "%s%s", separator, b)
	return err
}

func (l *jsonList) end() error {
	end := "\n]\n"
	if !l.begun {
		end = "[]\n"
	}
	_, err := io.WriteString(l.w, end)
	return err
}

// A rangeList prints ranges of a disk as they come.
type rangeList struct {
	w    *bufio.Writer
	json *jsonList // nil for text
	size sizeWriter
}

func newRangeList(cmd *cobra.Command, asJSON bool) *rangeList {
	l := &rangeList{w: bufio.NewWriter(cmd.OutOrStdout()), size: sizesOf(cmd)}
	if asJSON {
		l.json = &jsonList{w: l.w}
	}
	return l
}

const rangeRow = "%-18s %-16s %s\n"

func (l *rangeList) add(r compare.Range) error {
	if l.json != nil {
		return l.json.add(r)
	}
	kind := "data"
	if r.Zero {
		kind = "zero"
	}
	_, err := fmt.Fprintf(l.w, rangeRow, fmt.Sprintf("%#x", r.Offset), l.size(r.Length), kind)
	return err
}

func (l *rangeList) end() error {
	if l.json != nil {
		if err := l.json.end(); err != nil {
			return err
		}
	}
	return l.w.Flush()
}
