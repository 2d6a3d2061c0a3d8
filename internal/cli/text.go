package cli

import "github.com/vhdxfs/vhdxfs/internal/terminal"

// oneLine joins the lines of a message: of several errors, or of a list below a heading. Paths in it come from images, too,
// and what a terminal would obey in them is escaped.
func oneLine(msg string) string { return terminal.OneLine(msg) }

// withText puts the texts of errors into the arguments of a format, so that oneLine knows their lines.
func withText(args []any) []any {
	texts := make([]any, len(args))
	for i, a := range args {
		if err, ok := a.(error); ok && err != nil {
			a = terminal.Text(err)
		}
		texts[i] = a
	}
	return texts
}

// printable returns s, which is a path mostly, as it is, or in quotes where it has something else in it than what can be
// printed.
func printable(s string) string { return terminal.Printable(s) }
