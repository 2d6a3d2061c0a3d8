package terminal

import (
	"errors"
	"fmt"
	"testing"
)

// Joined errors are the lines of a message, and a line feed in a name is not the end of one.
func TestText(t *testing.T) {
	one, two := errors.New("a\nb: one"), errors.New("two")
	for _, c := range []struct {
		err  error
		want string
	}{
		{one, `a\nb: one`},
		{errors.Join(one, two), `a\nb: one; two`},
		{fmt.Errorf("first: %w; then", errors.Join(one, two, nil)), `first: a\nb: one; two; then`},
		{errors.Join(errors.Join(one, two), one), `a\nb: one; two; a\nb: one`},
		{fmt.Errorf("%w, %w", errors.Join(two, one), one), `two; a\nb: one, a\nb: one`},
		{errors.Join(one), `a\nb: one`},
		{fmt.Errorf("none found:%s%w", LineBreak, one), `none found: a\nb: one`},
		{errors.New(Said("losetup: a\nlosetup: b\n")), "losetup: a; losetup: b"},
	} {
		if got := OneLine(Text(c.err)); got != c.want {
			t.Errorf("%q is shown as %q, want %q", c.err, got, c.want)
		}
	}
}
