// Package terminal makes text that others chose fit to be written to a terminal: file names, labels, messages with them.
package terminal

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Escape returns s with escapes, as Go has them, in the place of what cannot be printed, and of what is no UTF-8.
func Escape(s string) string {
	if isPrintable(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		s = s[n:]
	}
	return b.String()
}

// Printable returns s, which is a path mostly, as it is, or in quotes where it has something else in it than what can be
// printed.
func Printable(s string) string {
	if isPrintable(s) {
		return s
	}
	return strconv.Quote(s)
}

// Shell returns s as a shell takes it for one word, in a command that people copy. With quotes where it is not plain, and with the
// escapes of bash, zsh and ksh where it has something else in it than what can be printed.
func Shell(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+,:=@%", r)
	}
	switch {
	case !isPrintable(s):
		var b strings.Builder
		for len(s) > 0 {
			r, n := utf8.DecodeRuneInString(s)
			switch {
			case r == '\'' || r == '\\':
				b.WriteString(`\` + s[:n])
			case n > 1 && strconv.IsPrint(r) || n == 1 && r < utf8.RuneSelf && strconv.IsPrint(r):
				b.WriteString(s[:n])
			default:
				for _, c := range []byte(s[:n]) {
					fmt.Fprintf(&b, `\%03o`, c)
				}
			}
			s = s[n:]
		}
		return "$'" + b.String() + "'"
	case s == "" || strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }):
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

func isPrintable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) })
}
