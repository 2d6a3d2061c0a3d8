package cli

import (
	"strings"

	"github.com/vhdxfs/vhdxfs/internal/terminal"
)

// oneLine joins the lines of a message: of several errors, or of a list below a heading. Paths in it come from images, too,
// and what a terminal would obey in them is escaped.
func oneLine(msg string) string {
	var b strings.Builder
	for line := range strings.Lines(msg) {
		line = strings.TrimSpace(line)
		switch {
		case line == "":
			continue
		case b.Len() == 0:
		case strings.HasSuffix(b.String(), ":"):
			b.WriteString(" ")
		default:
			b.WriteString("; ")
		}
		b.WriteString(terminal.Escape(line))
	}
	return b.String()
}

// printable returns s, which is a path mostly, as it is, or in quotes where it has something else in it than what can be
// printed.
func printable(s string) string { return terminal.Printable(s) }
