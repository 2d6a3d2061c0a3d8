package mountoption

import (
	"errors"
	"strings"
)

// Split splits a list of mount options at its commas, as mount(8) hands it over. A comma between
// double quotes, or behind a backslash, belongs to the option. The quotes go, and so does a backslash in
// front of a comma, a quote or a backslash; any other backslash is meant as it stands. Empty options are
// left out.
func Split(list string) ([]string, error) {
	var options []string
	var b strings.Builder
	quoted := false
	flush := func() {
		if b.Len() > 0 {
			options = append(options, b.String())
		}
		b.Reset()
	}
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '\\' && i+1 < len(list) && strings.IndexByte(`,"\`, list[i+1]) >= 0:
			i++
			b.WriteByte(list[i])
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			flush()
		default:
			b.WriteByte(c)
		}
	}
	if quoted {
		return nil, errors.New(`unclosed double quote`)
	}
	flush()
	return options, nil
}
