package draw

import (
	"bytes"
	"encoding/xml"
	"image/png"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

const mib = 1 << 20

// childImage makes a child with a bit of everything, whose name means something in XML.
func childImage(t *testing.T) *vhdx.Image {
	t.Helper()
	dir := t.TempDir()
	parent, child := filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "<b>&\"child\".avhdx")
	fill(t, parent, vhdx.CreateOptions{Size: 64 * mib, BlockSize: mib}, func(im *vhdx.Image) error {
		_, err := im.WriteAt(bytes.Repeat([]byte{1}, 8*mib), 3*mib)
		return err
	})
	fill(t, child, vhdx.CreateOptions{Parent: parent}, func(im *vhdx.Image) error {
		if _, err := im.WriteAt(bytes.Repeat([]byte{2}, 4096), 5*mib+8192); err != nil {
			return err
		}
		if _, err := im.WriteAt(bytes.Repeat([]byte{2}, 2*mib), 40*mib); err != nil {
			return err
		}
		return im.Zero(9*mib, mib)
	})
	im, err := vhdx.Open(child, vhdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im
}

func fill(t *testing.T, path string, o vhdx.CreateOptions, write func(*vhdx.Image) error) {
	t.Helper()
	if err := vhdx.Create(path, o); err != nil {
		t.Fatal(err)
	}
	im, err := vhdx.Open(path, vhdx.Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := write(im); err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}

func survey(t *testing.T, disk, file int) *Survey {
	t.Helper()
	s, err := NewSurvey(childImage(t), disk, file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A name cannot do anything to a terminal, and leaves room for what stands behind it.
func TestShown(t *testing.T) {
	long := strings.Repeat("ä", 100) + "end.vhdx"
	for name, want := range map[string]string{
		"disk.vhdx": "disk.vhdx", "ein Bild.vhdx": "ein Bild.vhdx", "a\x1b[31m.vhdx": `"a\x1b[31m.vhdx"`, "\xff.vhdx": `"\xff.vhdx"`, "a\nb": `"a\nb"`,
		long: strings.Repeat("ä", 19) + "…" + strings.Repeat("ä", 12) + "end.vhdx",
	} {
		if got := shown(name); got != want || utf8.RuneCountInString(got) > maxName {
			t.Errorf("%q is shown as %q, want %q", name, got, want)
		}
	}
}

// Every byte of the disk is in one cell, under one kind.
func TestSurvey(t *testing.T) {
	for _, cells := range []int{1, 7, 64, 1000, 1 << 20} {
		s := survey(t, cells, cells)
		if len(s.Cells) > cells || len(s.File) > cells {
			t.Errorf("%d and %d cells, at most %d were wanted", len(s.Cells), len(s.File), cells)
		}
		var sum Cell
		for i, c := range s.Cells {
			total := int64(0)
			for k := range c {
				sum[k] += c[k]
				total += c[k]
			}
			if want := min(s.CellSize, s.Info.DiskSize-int64(i)*s.CellSize); total != want {
				t.Errorf("cell %d of %d has %d bytes, want %d", i, cells, total, want)
			}
		}
		want := Cell{Hole: (64 - 8 - 2) * mib, Zero: mib, Data: 2*mib + 4096, Data + 1: 7*mib - 4096}
		if sum != want || s.Totals != want {
			t.Errorf("%d cells: %v and %v, want %v", cells, sum, s.Totals, want)
		}
	}
}

func TestSurveyOfTheFile(t *testing.T) {
	s := survey(t, 64, 1<<20)
	uses := map[Use]int64{}
	for _, c := range s.File {
		uses[c.Use] += s.FileCellSize
	}
	// 4 MiB of tables and log; three blocks, one of them in part; its sector bitmap.
	if s.FileCellSize > mib/16 || uses[Tables] != 4*mib || uses[InBlock] < 2*mib || uses[InBlock]+uses[InPart] != 3*mib || uses[Other] != mib {
		t.Errorf("cells of %d bytes: %v", s.FileCellSize, uses)
	}
	if s.Pieces != 2 {
		t.Errorf("%d pieces", s.Pieces)
	}
}

func TestCellSize(t *testing.T) {
	for _, tc := range []struct {
		total int64
		n     int
		want  int64
	}{
		{512, 100, 512}, {64 << 40, 8192, 8 << 30}, {100 * mib, 100, mib}, {101 * mib, 100, 5 * mib / 4}, {1, 1, 512},
	} {
		got := cellSize(tc.total, tc.n, 512)
		if got != tc.want || got*int64(tc.n) < tc.total {
			t.Errorf("%d bytes in %d cells: %d, want %d", tc.total, tc.n, got, tc.want)
		}
	}
}

func TestTerminal(t *testing.T) {
	for _, color := range []bool{false, true} {
		for _, size := range [][2]int{{80, 24}, {1, 1}, {500, 300}, {43, 20}} {
			term := Terminal{Width: size[0], Height: size[1], Color: color}
			s := survey(t, first(term.Grid(2)), second(term.Grid(2)))
			var b bytes.Buffer
			if err := term.Write(&b, s); err != nil {
				t.Fatal(err)
			}
			text := b.String()
			if strings.Contains(text, "\x1b") != color {
				t.Errorf("color %t: %q", color, text)
			}
			for _, want := range []string{"child", "base.vhdx: 7 MiB", "zero: 1 MiB", "not allocated: 54 MiB", "in 2 pieces"} {
				if !strings.Contains(ansi.Strip(text), want) {
					t.Errorf("%v lacks %q:\n%s", size, want, ansi.Strip(text))
				}
			}
			lines := strings.Split(ansi.Strip(text), "\n")
			for _, l := range lines[1:] { // the first has the name of the file
				if n := utf8.RuneCountInString(l); n > max(size[0], 80) {
					t.Errorf("a line of %d characters in %v: %q", n, size, l)
				}
			}
			if size == [2]int{80, 24} && len(lines) > 24 {
				t.Errorf("%d lines in a window of %v", len(lines), size)
			}
		}
	}
}

func first(a, _ int) int  { return a }
func second(_, b int) int { return b }

func TestSVG(t *testing.T) {
	s := survey(t, DiskCells, FileCells)
	var b bytes.Buffer
	if err := SVG(&b, s); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for d := xml.NewDecoder(&b); ; {
		tok, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch tok := tok.(type) {
		case xml.CharData:
			text.Write(tok)
		case xml.StartElement:
			if tok.Name.Local == "b" {
				t.Error("the name of the file has become an element")
			}
		}
	}
	for _, want := range []string{`<b>&"child".avhdx`, "base.vhdx: 7 MiB", "The file", "8 KiB of base.vhdx"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the picture lacks %q", want)
		}
	}
}

func TestPNG(t *testing.T) {
	s := survey(t, DiskCells, FileCells)
	var b bytes.Buffer
	if err := PNG(&b, s); err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(&b)
	if err != nil {
		t.Fatal(err)
	}
	colors := map[string]bool{}
	for y := 0; y < img.Bounds().Dy(); y++ {
		for x := 0; x < img.Bounds().Dx(); x++ {
			colors[hexOf(img.At(x, y))] = true
		}
	}
	for _, k := range []Kind{Hole, Zero, Data, Data + 1} {
		if !colors[hexOf(k.color())] {
			t.Errorf("the picture lacks the colour of kind %d", k)
		}
	}
}

func TestPercent(t *testing.T) {
	for _, tc := range []struct {
		n, of int64
		want  string
	}{{0, 10, "0 %"}, {10, 10, "100 %"}, {1, 3, "33.3 %"}, {1, 1 << 40, "< 0.1 %"}, {1<<40 - 1, 1 << 40, "> 99.9 %"}} {
		if got := percent(tc.n, tc.of); got != tc.want {
			t.Errorf("%d of %d: %q", tc.n, tc.of, got)
		}
	}
}
