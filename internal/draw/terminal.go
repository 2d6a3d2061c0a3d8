package draw

import (
	"bufio"
	"fmt"
	"image/color"
	"io"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// A Terminal says how to paint for a terminal.
type Terminal struct {
	Width, Height int  // characters
	Color         bool // with colours of 24 bits; without, patterns stand for them
}

const (
	labelWidth = 11              // of the offset at the begin of a row, with the space behind
	minWidth   = labelWidth + 16 // characters
	fileRows   = 3
	otherRows  = 6 // title, facts, file facts, file legend, an empty one, the prompt
	minRows    = 4
	maxRows    = 64
	maxWidth   = 200
	eighths    = " ▁▂▃▄▅▆▇█"
)

// Grid returns how many cells there is room for: those of the disk and those of the file.
func (t *Terminal) Grid(legend int) (disk, file int) {
	columns := t.columns()
	rows := max(minRows, min(maxRows, t.Height-otherRows-fileRows-legend))
	return columns * rows, columns * fileRows
}

// columns returns how many cells there are in a row: a multiple of 16, which makes for round offsets.
func (t *Terminal) columns() int {
	return (max(minWidth, min(maxWidth, t.Width)) - labelWidth) / 16 * 16
}

// Write paints the survey.
func (t *Terminal) Write(out io.Writer, s *Survey) error {
	w := &painter{Writer: bufio.NewWriter(out), color: t.Color}
	w.text(ansi.Style{}.Bold(), s.title())
	w.text(ansi.Style{}, "  "+s.facts()+"\n")
	columns := int64(t.columns())
	for i := int64(0); i < int64(len(s.Cells)); i += columns {
		w.label(i*s.CellSize, gradient(float64(i*s.CellSize)/float64(s.Info.DiskSize)))
		for _, c := range s.Cells[i:min(i+columns, int64(len(s.Cells)))] {
			w.cell(c)
		}
		w.text(ansi.Style{}, "\n")
	}
	for _, e := range s.legend() {
		var c Cell
		c[e.kind] = 1
		w.text(ansi.Style{}, strings.Repeat(" ", labelWidth))
		w.cell(c)
		w.text(ansi.Style{}, fmt.Sprintf(" %s: %s\n", e.name, e.amount))
	}
	w.text(ansi.Style{}, s.fileFacts()+"\n")
	for i := int64(0); i < int64(len(s.File)); i += columns {
		w.label(i*s.FileCellSize, nil)
		for _, c := range s.File[i:min(i+columns, int64(len(s.File)))] {
			w.fileCell(s, c)
		}
		w.text(ansi.Style{}, "\n")
	}
	w.fileLegend(s)
	return w.Flush()
}

// A painter writes text in colours, or without.
type painter struct {
	*bufio.Writer
	color bool
}

// text writes a string; the writer keeps the first error.
func (w *painter) text(style ansi.Style, s string) {
	if w.color && len(style) > 0 {
		s = style.Styled(s)
	}
	_, _ = w.WriteString(s)
}

// label writes an offset, in the colour that stands for its place.
func (w *painter) label(off int64, c color.Color) {
	style := ansi.Style{}
	if c != nil {
		style = style.ForegroundColor(c)
	}
	w.text(style, fmt.Sprintf("%*s ", labelWidth-1, size(off)))
}

// cell paints a run of the disk: the data of the kind that has most as a bar as high as its part, on the colour of
// what comes next.
func (w *painter) cell(c Cell) {
	total, first := int64(0), Kind(-1)
	for k := range c {
		total += c[k]
		if k := Kind(k); k >= Data && c[k] > 0 && (first < 0 || c[k] > c[first]) {
			first = k
		}
	}
	if first < 0 {
		switch {
		case c[Zero] == 0:
			w.text(ansi.Style{}.Faint(), "·")
		case w.color:
			w.text(ansi.Style{}.ForegroundColor(zeroColor), "░")
		default:
			w.text(ansi.Style{}, "0")
		}
		return
	}
	bar := []rune(eighths)[max(1, min(8, (c[first]*8+total/2)/total))]
	if !w.color {
		if first > Data {
			bar = []rune("▒░▤▥▧")[first-Data-1]
		}
		w.text(ansi.Style{}, string(bar))
		return
	}
	style := ansi.Style{}.ForegroundColor(first.color())
	next := Hole
	for k := Zero; k < kinds; k++ {
		if k != first && c[k] > c[next] {
			next = k
		}
	}
	if next != Hole && bar != '█' {
		style = style.BackgroundColor(next.color())
	}
	w.text(style, string(bar))
}

// fileMarks stand for a part of the file where there are no colours.
var fileMarks = map[Use]string{Free: "·", Other: "?", InPart: "-", Tables: "#"}

func (w *painter) fileCell(s *Survey, c FileCell) {
	switch {
	case !w.color && c.Use == InBlock:
		// Ten digits for ten parts of the disk.
		w.text(ansi.Style{}, fmt.Sprint(min(9, c.Disk*10/s.Info.DiskSize)))
	case !w.color, c.Use == Free:
		w.text(ansi.Style{}.Faint(), fileMarks[c.Use])
	default:
		w.text(ansi.Style{}.ForegroundColor(s.fileColor(c)), "█")
	}
}

// fileLegend explains the marks of the file, those that the picture may have.
func (w *painter) fileLegend(s *Survey) {
	uses := []Use{Tables, Other, Free}
	if s.Info.Blocks.PartiallyPresent > 0 {
		uses = append(uses, InPart)
	}
	if !w.color {
		w.text(ansi.Style{}, "0 to 9: start to end of disk")
	} else {
		w.text(ansi.Style{}, "start of disk ")
		const steps = 10
		for i := range steps {
			w.text(ansi.Style{}.ForegroundColor(gradient(float64(i)/(steps-1))), "█")
		}
		w.text(ansi.Style{}, " end")
	}
	for _, use := range uses {
		w.text(ansi.Style{}, "  ")
		w.fileCell(s, FileCell{Use: use, Disk: s.Info.DiskSize / 2})
		w.text(ansi.Style{}, " "+useNames[use])
	}
	w.text(ansi.Style{}, "\n")
}

// useNames are short, so that all of them stand in one line.
var useNames = map[Use]string{Tables: "tables, log", Other: "other", Free: "free", InPart: "rest of block"}
