package lease

import (
	"testing"
	"time"

	"github.com/google/uuid"
)

func TestEpochSurvivesItsGUID(t *testing.T) {
	for _, c := range []struct{ host, want string }{
		{"a", "a"},
		{"node7", "node7"},
		{"12345678", "12345678"},
		{"Node7.example.com", "node7"},
		{"storage-node-17", "sto~e-17"},
		{"zzzzzzzz", "zzzzzzzz"},
		{"~~~~~~~~", "~~~~~~~~"},
		{"host_1", "host-1"},
		{"", ""},
	} {
		for _, released := range []bool{false, true} {
			for _, since := range []int64{0, 1, 1764500000, 1<<32 - 1} {
				e := Epoch{Host: c.host, Since: time.Unix(since, 0), Released: released}
				g := e.newGUID()
				got, ok := EpochOf(g)
				if want := (Epoch{Host: c.want, Since: e.Since, Released: released}); !ok || got != want {
					t.Errorf("%v: the epoch %v is read as %v, %t; want %v", g, e, got, ok, want)
				}
				if g.Version() != 8 || g.Variant() != uuid.RFC4122 {
					t.Errorf("%v has version %d and variant %v", g, g.Version(), g.Variant())
				}
				if g == e.newGUID() {
					t.Errorf("two GUIDs of one epoch are the same: %v", g)
				}
			}
		}
	}
	for range 1000 {
		if g := uuid.New(); g.Version() == 8 {
			t.Fatal(g)
		} else if _, ok := EpochOf(g); ok {
			t.Errorf("%v is taken for an epoch", g)
		}
	}
}
