package draw

import (
	"fmt"
	"image/color"
	"strings"
)

// A canvas is a sheet that a picture is painted on. Places and sizes are in pixels, from the top left corner.
type canvas interface {
	rect(x, y, w, h float64, c color.Color, hint string)
	text(x, y float64, f font, s string) // y is the base line
}

// A font is how a text looks.
type font struct {
	size  float64
	bold  bool
	end   bool // x is where the text ends
	color color.Color
}

const (
	pageWidth = 1200.0
	margin    = 40.0
	axis      = 84.0 // for the offsets to the left of a grid
	cell      = 8.0  // from one cell to the next
	cellGap   = 1.0

	// Columns is how many cells a row of a picture has.
	Columns  = 128
	diskRows = 64
	pageRows = 16 // of the file

	// DiskCells and FileCells are how many cells a picture has room for.
	DiskCells = Columns * diskRows
	FileCells = Columns * pageRows
)

// A page paints a survey from the top to the bottom.
type page struct {
	*Survey
	to canvas
	y  float64
}

// paint paints the survey and returns the height of the picture.
func (s *Survey) paint(to canvas) (height float64) {
	p := &page{s, to, margin}
	p.y += 22
	to.text(margin, p.y, font{size: 24, bold: true, color: inkColor}, s.title())
	p.y += 24
	to.text(margin, p.y, font{size: 14, color: paleColor}, s.facts())
	p.y += 30
	p.heading("The disk", fmt.Sprintf("a square is %s", size(s.CellSize)))
	p.disk()
	p.legend()
	p.y += 34
	p.heading("The file", p.fileFacts()[len("file: "):])
	p.file()
	p.fileLegend()
	return p.y + margin
}

func (p *page) heading(title, detail string) {
	p.to.text(margin, p.y, font{size: 16, bold: true, color: inkColor}, title)
	p.to.text(margin+axis, p.y, font{size: 13, color: paleColor}, detail)
	p.y += 14
}

// row paints the offset at the begin of a row of cells, in every eighth row, and the colour of its place on the disk.
func (p *page) row(i int, off int64, mark color.Color) (x float64) {
	if i%8 == 0 {
		p.to.text(margin+axis-16, p.y+cell, font{size: 11, end: true, color: paleColor}, size(off))
	}
	if mark != nil {
		p.to.rect(margin+axis-10, p.y, 4, cell-cellGap, mark, "")
	}
	return margin + axis
}

// grid cuts what was painted from the line at top on into cells.
func (p *page) grid(top float64) {
	const left, width = margin + axis, Columns * cell
	for i := range Columns {
		p.to.rect(left+float64(i+1)*cell-cellGap, top, cellGap, p.y-top, paperColor, "")
	}
	for y := top + cell; y <= p.y; y += cell {
		p.to.rect(left, y-cellGap, width, cellGap, paperColor, "")
	}
}

func (p *page) disk() {
	defer p.grid(p.y)
	for i := 0; i*Columns < len(p.Cells); i++ {
		off := int64(i*Columns) * p.CellSize
		x := p.row(i, off, gradient(float64(off)/float64(p.Info.DiskSize)))
		cells := p.Cells[i*Columns : min((i+1)*Columns, len(p.Cells))]
		for len(cells) > 0 {
			n := 1
			for n < len(cells) && cells[n] == cells[0] {
				n++
			}
			p.cells(x, n, cells[0], off)
			x, off, cells = x+float64(n)*cell, off+int64(n)*p.CellSize, cells[n:]
		}
		p.y += cell
	}
}

// stacked are the kinds that are painted into a cell, from the top to the bottom: the image itself is lowest.
var stacked = func() []Kind {
	list := []Kind{Zero}
	for k := kinds - 1; k >= Data; k-- {
		list = append(list, k)
	}
	return list
}()

// cells paints n cells that look alike. Each is filled from below as far as there is something.
func (p *page) cells(x float64, n int, c Cell, off int64) {
	total := int64(0)
	var parts []string
	for k, b := range c {
		total += b
		if b > 0 && Kind(k) >= Data {
			parts = append(parts, fmt.Sprintf("%s of %s", size(b), p.Names[min(k-int(Data), len(p.Names)-1)]))
		}
	}
	if c[Zero] > 0 {
		parts = append(parts, size(c[Zero])+" zero")
	}
	if len(parts) == 0 {
		parts = []string{"nothing"}
	}
	each := ""
	if n > 1 {
		each = ", each"
	}
	hint := fmt.Sprintf("%s to %s%s: %s", size(off), size(min(off+int64(n)*p.CellSize, p.Info.DiskSize)), each, strings.Join(parts, ", "))
	const side = cell - cellGap
	paint := func(k Kind, h float64) { p.to.rect(x, p.y+side-h, float64(n)*cell, h, k.color(), hint) }
	paint(Hole, side)
	// Each kind is painted from below to the height of all that are still to come, which then cover it. What there
	// is shows, however little it is.
	stack := total - c[Hole]
	for _, k := range stacked {
		if c[k] > 0 {
			paint(k, max(2, side*float64(stack)/float64(total)))
			stack -= c[k]
		}
	}
}

func (p *page) legend() {
	p.y += 26
	x := margin + axis
	for _, e := range p.Survey.legend() {
		text := e.name + ": " + e.amount
		width := 30 + 7.2*float64(len([]rune(text)))
		if x+width > pageWidth-margin && x > margin+axis {
			x, p.y = margin+axis, p.y+22
		}
		p.to.rect(x, p.y-10, 12, 12, e.kind.color(), "")
		p.to.text(x+18, p.y, font{size: 13, color: inkColor}, text)
		x += width
	}
}

func (p *page) file() {
	defer p.grid(p.y)
	for i := 0; i*Columns < len(p.File); i++ {
		x := p.row(i, int64(i*Columns)*p.FileCellSize, nil)
		cells := p.File[i*Columns : min((i+1)*Columns, len(p.File))]
		for len(cells) > 0 {
			c, n := p.fileColor(cells[0]), 1
			for n < len(cells) && p.fileColor(cells[n]) == c {
				n++
			}
			p.to.rect(x, p.y, float64(n)*cell, cell-cellGap, c, "")
			x, cells = x+float64(n)*cell, cells[n:]
		}
		p.y += cell
	}
}

func (p *page) fileLegend() {
	p.y += 26
	x := margin + axis
	p.to.text(x, p.y, font{size: 13, color: inkColor}, "start of the disk")
	x += 116
	const steps = 24
	for i := range steps {
		p.to.rect(x, p.y-10, 8, 12, gradient(float64(i)/(steps-1)), "")
		x += 8
	}
	p.to.text(x+8, p.y, font{size: 13, color: inkColor}, "end")
	x += 60
	type entry struct {
		c    color.Color
		name string
	}
	list := []entry{{tableColor, "tables and log"}, {otherColor, "other"}, {freeColor, "free"}}
	if p.Info.Blocks.PartiallyPresent > 0 {
		list = append(list, entry{gradient(0.5).BlendLab(paperColor, paleness).Clamped(), "rest of a block"})
	}
	for _, e := range list {
		p.to.rect(x, p.y-10, 12, 12, e.c, "")
		p.to.text(x+18, p.y, font{size: 13, color: inkColor}, e.name)
		x += 44 + 7.2*float64(len(e.name))
	}
}
