package utf16text

import (
	"encoding/binary"
	"testing"
)

func TestUpToZero(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		b     string
		order binary.ByteOrder
		want  string
	}{
		{"", binary.LittleEndian, ""},
		{"a\x00\xe4\x00", binary.LittleEndian, "aä"},
		{"\x00a\x00\xe4", binary.BigEndian, "aä"},
		{"a\x00\x00\x00b\x00", binary.LittleEndian, "a"},
		{"a\x00b", binary.LittleEndian, "a"},                    // an odd byte
		{"\x3d\xd8\x00\xde", binary.LittleEndian, "\U0001F600"}, // a pair of surrogates
		{"\x3d\xd8a\x00", binary.LittleEndian, "\uFFFD" + "a"},  // half of one
	} {
		if got := UpToZero([]byte(c.b), c.order); got != c.want {
			t.Errorf("%q: %q, want %q", c.b, got, c.want)
		}
	}
}
