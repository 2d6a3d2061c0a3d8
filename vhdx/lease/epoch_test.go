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
		{"a\x00b", "a-b"},
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

// What other programs may have as a FileWriteGuid is no epoch: another variant, or a name that no host is given.
func TestNoEpoch(t *testing.T) {
	good := Epoch{Host: "a", Since: time.Unix(1764500000, 0)}.newGUID()
	if _, ok := EpochOf(good); !ok {
		t.Fatalf("%v is no epoch", good)
	}
	variant, version := good, good
	variant[8] ^= 0x40
	version[6] ^= 0x10
	host := func(n uint64) uuid.UUID {
		high, low := split(good)
		high = high&^(1<<(hostBits-17)-1) | n>>17
		return join(high, low&(1<<47-1)|n<<47)
	}
	const chars = uint64(len(alphabet))
	power := uint64(1)
	for range hostChars {
		power *= chars
	}
	if e, ok := EpochOf(host(power / chars)); !ok || e.Host != "a" {
		t.Fatalf("the host is %+v, %t", e, ok)
	}
	for name, g := range map[string]uuid.UUID{
		"variant": variant, "version": version, "number too large": host(power), "largest number": host(1<<hostBits - 1),
		"NUL in the name": host(encodeHost("a") + 1), "NUL at its beginning": host(1),
	} {
		if e, ok := EpochOf(g); ok {
			t.Errorf("%s: %v is taken for %+v", name, g, e)
		}
		if Held(g) != g || Released(g) != g {
			t.Errorf("%s: %v becomes %v and %v", name, g, Held(g), Released(g))
		}
	}
}

// A GUID of an epoch that is released, or is not, differs from the one of the same epoch that is not, or is, in that alone.
func TestHeldAndReleased(t *testing.T) {
	for _, host := range []string{"a", "zzzzzzzz", "~~~~~~~~"} {
		for range 20 { // of which half have each random bit
			e := Epoch{Host: host, Since: time.Unix(1764500000, 0)}
			held := e.newGUID()
			e.Released = true
			released := Released(held)
			if got, ok := EpochOf(released); !ok || got != e {
				t.Errorf("%v becomes %v, which is %+v, %t", held, released, got, ok)
			}
			if Held(released) != held || Held(held) != held || Released(released) != released {
				t.Errorf("%v becomes %v, and that %v", held, released, Held(released))
			}
		}
	}
}

func TestEpochForPeople(t *testing.T) {
	since := time.Date(2026, 2, 3, 4, 5, 6, 0, time.Local)
	for _, c := range []struct{ host, want string }{
		{"a", "a, since 2026-02-03 04:05:06"},
		{"", "a host without a name, since 2026-02-03 04:05:06"},
	} {
		if got := (Epoch{Host: c.host, Since: since}).String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
