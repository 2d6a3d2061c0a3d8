package size

import (
	"testing"
	"time"
)

func TestText(t *testing.T) {
	for n, want := range map[int64][2]string{
		0: {"0 B", "0 B"}, 1: {"1 B", "1 B"}, 512: {"512 B", "512 B"}, 1023: {"1023 B", "1023 B"}, 1024: {"1 KiB", "1 KiB"},
		1536: {"1.5 KiB", "1536 B"}, 3 << 20: {"3 MiB", "3 MiB"}, 1001 << 20: {"1001 MiB", "1001 MiB"}, 1<<30 + 512: {"1 GiB", "1073742336 B"},
		1621350154: {"1.51 GiB", "1621350154 B"}, 2254188 << 10: {"2.15 GiB", "2254188 KiB"}, 1<<40 - 1: {"1 TiB", "1099511627775 B"},
		1023<<20 + 1: {"1 GiB", "1072693249 B"}, 12<<30 + 345<<20: {"12.3 GiB", "12633 MiB"}, 123<<30 + 456<<20: {"123 GiB", "126408 MiB"},
		64 << 40: {"64 TiB", "64 TiB"}, 5 << 50: {"5 PiB", "5 PiB"}, -50 << 30: {"-50 GiB", "-50 GiB"}, 999<<10 + 600: {"0.98 MiB", "1023576 B"},
	} {
		if got := Text(n); got != want[0] {
			t.Errorf("Text(%d) = %q, want %q", n, got, want[0])
		}
		if got := Exact(n); got != want[1] {
			t.Errorf("Exact(%d) = %q, want %q", n, got, want[1])
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 s", 8 * time.Second: "8 s", 99400 * time.Millisecond: "99 s", 3*time.Minute + 10*time.Second: "3 min", 2 * time.Hour: "2 h", 2*time.Hour + 5*time.Minute: "2 h 5 min",
	} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]int64{
		"1": 1, "512": 512, "64M": 64 << 20, "64m": 64 << 20, "1Gi": 1 << 30, "1.5GiB": 3 << 29, "10KB": 10 << 10, "64T": 64 << 40,
		"0": 0, "-1M": 0, "": 0, "many": 0, "M": 0,
	} {
		got, err := Parse(text)
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("Parse(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
}
