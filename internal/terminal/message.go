package terminal

import "strings"

// LineBreak separates the lines of a message, such as joined errors. It is a character that no file name has, as others have
// line feeds.
const LineBreak = "\x00"

// Text returns the text of err with LineBreak between the errors that errors.Join has joined. Line feeds that are left are
// those of names.
func Text(err error) string { return separated(err, err.Error()) }

// Said returns what another program wrote to its standard error, as the text of an error.
func Said(output string) string {
	return strings.ReplaceAll(strings.TrimSpace(output), "\n", LineBreak)
}

// separated puts LineBreak between the errors that are joined in err, whose text is part of text.
func separated(err error, text string) string {
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if below := e.Unwrap(); below != nil {
			return separated(below, text)
		}
	case interface{ Unwrap() []error }:
		var texts []string
		list := e.Unwrap()
		for _, below := range list {
			texts = append(texts, below.Error())
		}
		if joined := strings.Join(texts, "\n"); len(list) > 1 && err.Error() == joined {
			text = strings.Replace(text, joined, strings.Join(texts, LineBreak), 1)
		}
		for _, below := range list {
			text = separated(below, text)
		}
	}
	return text
}

// OneLine joins the lines of a message, which LineBreak separates: of several errors, or of a list below a heading. What a terminal
// would obey is escaped.
func OneLine(msg string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(msg, LineBreak) {
		line = strings.Trim(line, " \t")
		switch {
		case line == "":
			continue
		case b.Len() == 0:
		case strings.HasSuffix(b.String(), ":"):
			b.WriteString(" ")
		default:
			b.WriteString("; ")
		}
		b.WriteString(Escape(line))
	}
	return b.String()
}
