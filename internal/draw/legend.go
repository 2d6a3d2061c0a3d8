package draw

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	sizes "github.com/vhdxfs/vhdxfs/internal/size"
)

// maxName is how many characters of a file's name are shown: with the amount behind them, they fit into 80.
const maxName = 40

// shown returns a name as a picture has room for it, without what would do something to a terminal.
func shown(name string) string {
	if !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !strconv.IsPrint(r) }) {
		name = strconv.Quote(name)
	}
	if r := []rune(name); len(r) > maxName {
		name = string(r[:maxName/2-1]) + "…" + string(r[len(r)-maxName/2:])
	}
	return name
}

// title and facts are the lines above the pictures.
func (s *Survey) title() string { return s.Names[0] }

func (s *Survey) facts() string {
	in := s.Info
	text := fmt.Sprintf("%s, disk %s in blocks of %s, file %s", in.Type, size(in.DiskSize), size(in.BlockSize), size(in.FileSize))
	if n := len(s.Names) - 1; n > 0 {
		text += fmt.Sprintf(", %d parent%s", n, plural(int64(n)))
	}
	return text
}

// A legendEntry explains a colour of the disk.
type legendEntry struct {
	kind   Kind
	name   string
	amount string
}

// legend lists the kinds of bytes that the disk has.
func (s *Survey) legend() []legendEntry {
	var list []legendEntry
	add := func(k Kind, name string) {
		n := s.Totals[k]
		list = append(list, legendEntry{k, name, fmt.Sprintf("%s, %s", size(n), percent(n, s.Info.DiskSize))})
	}
	for k := Data; k < kinds; k++ {
		i := int(k - Data)
		if i >= len(s.Names) {
			break
		}
		name := s.Names[i]
		if k == kinds-1 && len(s.Names) > i+1 {
			name += " and below"
		}
		add(k, name)
	}
	if s.Totals[Zero] > 0 {
		add(Zero, "zero")
	}
	add(Hole, "not allocated")
	return list
}

// fileFacts is the line above the picture of the file.
func (s *Survey) fileFacts() string {
	in := s.Info
	if s.Pieces == 0 {
		return fmt.Sprintf("file: %s, none of it data", size(in.FileSize))
	}
	return fmt.Sprintf("file: %s of data in %d piece%s of %s on average, %s free",
		size(s.Totals[Data]), s.Pieces, plural(s.Pieces), size(s.Totals[Data]/s.Pieces), size(in.FreeBytes))
}

func size(n int64) string {
	return sizes.Text(n)
}

func percent(n, of int64) string {
	switch p := 100 * float64(n) / float64(of); {
	case n == 0:
		return "0 %"
	case p < 0.1:
		return "< 0.1 %"
	case p > 99.9 && n < of:
		return "> 99.9 %"
	default:
		return fmt.Sprintf("%.3g %%", p)
	}
}

func plural(n int64) string {
	if n == 1 {
		return ""
	}
	return "s"
}
