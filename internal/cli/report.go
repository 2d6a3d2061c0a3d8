package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vhdxfs/vhdxfs/internal/terminal"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// What a command says when it fails or warns. An error is one line, "vhdxfs: IMAGE: what is wrong; what to do", or with
// --json one object on standard error.

// A jsonError is what a failure is with --json.
type jsonError struct {
	Error     string `json:"error"`
	Status    int    `json:"exit_status"`
	Path      string `json:"path,omitempty"`
	Structure string `json:"structure,omitempty"` // of a broken rule
	Offset    *int64 `json:"offset,omitempty"`    // in the file
	Rule      string `json:"rule,omitempty"`
}

// reportError writes an error to standard error. One without a message was told already.
func reportError(w io.Writer, name string, err error, asJSON bool) {
	msg := oneLine(message(err))
	switch {
	case msg == "":
	case asJSON:
		e := jsonError{Error: msg, Status: statusOf(err)}
		var broken *vhdx.FormatError
		if errors.As(err, &broken) {
			e.Structure, e.Offset, e.Rule = broken.Structure, &broken.Offset, broken.Rule.Name()
		}
		var path *fs.PathError
		if errors.As(err, &path) {
			e.Path = path.Path
		}
		if b, jerr := encode(e, ""); jerr == nil {
			fmt.Fprintf(w, "%s\n", b)
		}
	default:
		fmt.Fprintf(w, "%s: %s\n", name, msg)
	}
}

// message returns the text of an error. What the system says of a file begins with the file, as everything else does.
func message(err error) string {
	msg := terminal.Text(err)
	var path *fs.PathError
	if !errors.As(err, &path) {
		return msg
	}
	said := fmt.Sprintf("%s: cannot %s: %v", path.Path, path.Op, path.Err)
	if errors.Is(path.Err, fs.ErrNotExist) || path.Path == "" || strings.Contains(path.Op, " ") {
		said = fmt.Sprintf("%s: %v", path.Path, path.Err)
	}
	msg = strings.Replace(msg, path.Error(), said, 1)
	return strings.Replace(msg, path.Path+": "+path.Path+": ", path.Path+": ", 1)
}

// wantsJSON reports whether a command line asks for JSON, also where it has a mistake.
func wantsJSON(cmd *cobra.Command, args []string) bool {
	if cmd != nil && isSet(cmd, "json") {
		return true
	}
	for _, a := range args {
		switch a {
		case "--":
			return false
		case "--json", "--json=true":
			return true
		}
	}
	return false
}

// warn writes a warning, unless -q was given.
func warn(cmd *cobra.Command, format string, args ...any) {
	if !isQuiet(cmd) {
		fmt.Fprintf(cmd.ErrOrStderr(), "vhdxfs: warning: %s\n", oneLine(fmt.Sprintf(format, withText(args)...)))
	}
}

// A messageFormatter writes what is logged in the form of the other messages: "vhdxfs: warning: what (field, field)".
type messageFormatter struct{}

func (messageFormatter) Format(e *logrus.Entry) ([]byte, error) {
	level := e.Level.String() + ": "
	if e.Level == logrus.ErrorLevel || e.Level == logrus.InfoLevel {
		level = ""
	}
	msg := e.Message
	if err, ok := e.Data[logrus.ErrorKey]; ok {
		msg += fmt.Sprintf(": %v", withText([]any{err})...)
	}
	var fields []string
	for _, k := range sortedKeys(e.Data) {
		if k != logrus.ErrorKey {
			fields = append(fields, fmt.Sprintf("%s %v", k, e.Data[k]))
		}
	}
	if len(fields) > 0 {
		msg += " (" + strings.Join(fields, ", ") + ")"
	}
	return fmt.Appendf(nil, "vhdxfs: %s%s\n", level, oneLine(msg)), nil
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func writeJSON(w io.Writer, v any) error {
	b, err := encode(v, "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// encode returns v as JSON. A byte of a string that is not UTF-8, as a path may have, becomes \udcXX, a lone surrogate:
// as Python has it, which reads it back as that byte. Characters that cannot be printed become \uXXXX.
func encode(v any, indent string) ([]byte, error) {
	b, err := encodeValid(v, indent)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(string(b), `\ufffd`) { // which stands for such a byte only
		return escapeUnprintable(b, false), nil
	}
	if b, err = encodeValid(escapeBytes(reflect.ValueOf(v)).Interface(), indent); err != nil {
		return nil, err
	}
	return escapeUnprintable(b, true), nil
}

// escapeUnprintable escapes what a terminal would obey in JSON, and bytes that placeholders stand for. Line feeds in it are no part
// of a string.
func escapeUnprintable(b []byte, placeholders bool) []byte {
	if !bytes.ContainsFunc(b, func(r rune) bool { return r != '\n' && !strconv.IsPrint(r) }) {
		return b
	}
	var out []byte
	for _, r := range string(b) {
		switch c := r - bytePlaceholder; {
		case placeholders && c >= 0x80 && c <= 0xFF:
			out = fmt.Appendf(out, `\udc%02x`, c)
		case r == '\n' || strconv.IsPrint(r):
			out = utf8.AppendRune(out, r)
		default:
			for _, u := range utf16.AppendRune(nil, r) {
				out = fmt.Appendf(out, `\u%04x`, u)
			}
		}
	}
	return out
}

func encodeValid(v any, indent string) ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetIndent("", indent)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return []byte(strings.TrimSuffix(b.String(), "\n")), err
}

// bytePlaceholder plus a byte is the rune, for private use, that stands for the byte until the text is JSON.
const bytePlaceholder = 0x10EE00

// escapeBytes returns a copy of v with placeholders in its strings for what is not UTF-8.
func escapeBytes(v reflect.Value) reflect.Value {
	if !v.IsValid() {
		return v
	}
	c := reflect.New(v.Type()).Elem()
	c.Set(v)
	switch v.Kind() {
	case reflect.String:
		c.SetString(escapeString(v.String()))
	case reflect.Pointer:
		if !v.IsNil() {
			c.Set(reflect.New(v.Type().Elem()))
			c.Elem().Set(escapeBytes(v.Elem()))
		}
	case reflect.Interface:
		if !v.IsNil() {
			c.Set(escapeBytes(v.Elem()))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if c.Field(i).CanSet() {
				c.Field(i).Set(escapeBytes(v.Field(i)))
			}
		}
	case reflect.Slice:
		if !v.IsNil() {
			c.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
			for i := range v.Len() {
				c.Index(i).Set(escapeBytes(v.Index(i)))
			}
		}
	}
	return c
}

func escapeString(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 {
			r = bytePlaceholder + rune(s[0])
		}
		b.WriteRune(r)
		s = s[n:]
	}
	return b.String()
}

// sortedKeys returns the names of the fields in order.
func sortedKeys(fields logrus.Fields) []string {
	keys := make([]string, 0, len(fields))
	for k := range fields {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
