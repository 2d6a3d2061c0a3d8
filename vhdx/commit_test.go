package vhdx

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/cache"
	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A seenFile writes down what is done with a file, a letter for each: H a write of a header, L one to the log, P one elsewhere,
// s a sync. One of the letters may fail.
type seenFile struct {
	File
	l     *layer
	did   strings.Builder
	fail  map[string]error
	panic bool // instead of any operation
}

func (f *seenFile) do(what string) error {
	if f.panic {
		panic("a fault of the file")
	}
	if err := f.fail[what]; err != nil {
		return err
	}
	if what != "L" || !strings.HasSuffix(f.did.String(), "L") { // an entry may take several writes
		f.did.WriteString(what)
	}
	return nil
}

func (f *seenFile) WriteAt(p []byte, off int64) (int, error) {
	what := "P"
	if log := f.l.log(); off >= log.Offset && off < log.Offset+log.Length {
		what = "L"
	} else if off < ondisk.HeaderSectionSize {
		what = "H"
	}
	if err := f.do(what); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *seenFile) Sync() error { return f.do("s") }

// seen returns what was done since the last call.
func (f *seenFile) seen() string {
	defer f.did.Reset()
	return f.did.String()
}

// newCommitter returns a committer by itself, with no blocks and no background worker.
func newCommitter(t *testing.T) (*committer, *seenFile) {
	t.Helper()
	im := build(spec{})
	f := &seenFile{File: im.memFile, fail: make(map[string]error)}
	l := newOpener(Options{}).newLayer(f, "commits")
	if err := l.load(); err != nil {
		t.Fatal(err)
	}
	f.l = l
	fails, n := &failure{log: nowhere()}, new(counters)
	c := &committer{failure: fails, counters: n, own: new(atomic.Pointer[layer]), file: f, dirty: new(dirtyPages),
		headers: &headerState{failure: fails, counters: n, newFileWrite: uuid.New}, space: &allocator{failure: fails, gaveUp: func() {}, holes: true}}
	c.own.Store(l)
	c.space.reads = newReadEpochs()
	c.space.use(l, f)
	c.headers.use(l, f, true)
	c.dirty.init()
	c.init()
	return c, f
}

// change makes a page of the BAT dirty.
func (c *committer) change(t *testing.T, value uint64, barrier bool) {
	t.Helper()
	p := pinned(t, c.own.Load().bat, 0)
	pages := []dirtyPage{p}
	c.dirty.apply(&pages, func() { p.p.SetWord(0, value); c.dirty.barrier = c.dirty.barrier || barrier })
	c.wrote()
}

func (c *committer) wantSync(t *testing.T, f *seenFile, want string) {
	t.Helper()
	if err := c.sync(); err != nil || f.did.String() != want {
		t.Errorf("sync did %q, %v; want %q", f.did.String(), err, want)
	}
	f.did.Reset()
}

// emptied empties the log as a caller does.
func (c *committer) emptied() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.emptyLog()
}

// The order of writes and syncs is what keeps an image whole: each s here is there for a reason that commit.go tells.
func TestOrderOfACommit(t *testing.T) {
	c, f := newCommitter(t)
	c.wantSync(t, f, "") // nothing to do
	c.wrote()
	c.wantSync(t, f, "s")           // payload in a block that is mapped
	c.change(t, 1, false)           //
	c.wantSync(t, f, "LsHsHs"+"Ls") // a log begins: an entry, the headers, then the entry with the page
	c.change(t, 2, false)
	c.wantSync(t, f, "Ls") // payload and entry together
	c.change(t, 3, true)
	c.wantSync(t, f, "sLs") // the payload first
	c.wantSync(t, f, "")
	if err := c.emptied(); err != nil || f.seen() != "PsHsHs" || c.session != nil {
		t.Errorf("to empty the log: %v; %v", err, c.session)
	}
	if err := c.emptied(); err != nil || f.seen() != "" {
		t.Errorf("to empty an empty log: %v", err)
	}
	hs, err := readHeaders(f)
	if err != nil || hs.header().Dirty() {
		t.Errorf("the header names a log: %v, %v", hs.header().LogGUID, err)
	}
}

// Where the host has no space nothing is lost: all of it stays dirty, or in the log, and goes on when there is space.
func TestCommitWithoutSpace(t *testing.T) {
	for what, after := range map[string]string{
		"H": "HsHs" + "Ls" + "PsHsHs", // the log has begun, and no header names it
		"L": "LsHsHs" + "Ls" + "PsHsHs",
		"P": "PsHsHs",
	} {
		t.Run(what, func(t *testing.T) {
			c, f := newCommitter(t)
			c.change(t, 1, false)
			f.fail[what] = unix.ENOSPC
			if err := c.emptied(); !errors.Is(err, unix.ENOSPC) || c.err() != nil || !c.stuck.Load() {
				t.Fatalf("without space: %v, read-only with %v, stuck %v", err, c.err(), c.stuck.Load())
			}
			if err := c.unstick(); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("a new change: %v; want ENOSPC", err)
			}
			delete(f.fail, what)
			f.seen()
			if err := c.unstick(); err != nil || f.did.String() != after || c.stuck.Load() {
				t.Errorf("with space again, it did %q, %v; want %q", f.did.String(), err, after)
			}
			e := ondisk.BATEntry(0)
			var b [8]byte
			if _, err := f.ReadAt(b[:], c.own.Load().batOffset()); err == nil {
				e = ondisk.BATEntry(ondisk.LE.Uint64(b[:]))
			}
			if e != 1 || c.uncommitted() {
				t.Errorf("the page in its place begins with %#x; want 1", e)
			}
		})
	}
}

// After a failed sync, or a failed write of what others rely on, nothing is written any more.
func TestCommitThatFails(t *testing.T) {
	for what, before := range map[string]string{"s": "", "L": "s", "H": "sLs", "P": "sLsHsHsLs"} {
		t.Run(what, func(t *testing.T) {
			c, f := newCommitter(t)
			c.change(t, 1, true)
			f.fail[what] = unix.EIO
			if err := c.emptied(); !errors.Is(err, unix.EIO) || !errors.Is(c.err(), ErrFailed) {
				t.Fatalf("it fails with %v, and the image is read-only with %v", err, c.err())
			}
			if did := f.seen(); did != before {
				t.Errorf("it did %q; want %q, and nothing after the failure", did, before)
			}
			clear(f.fail)
			c.change(t, 2, false)
			if err := c.sync(); !errors.Is(err, ErrFailed) || f.seen() != "" {
				t.Errorf("the next sync: %v; want %v, with nothing written", err, ErrFailed)
			}
		})
	}
}

// If a header could not be written at the end of a log, either header may be the one that the next open finds. So no entry is
// added to that log: a replay might not see it.
func TestNoEntryInALogThatEnds(t *testing.T) {
	c, f := newCommitter(t)
	c.change(t, 1, false)
	c.wantSync(t, f, "LsHsHs"+"Ls")
	f.fail["H"] = unix.ENOSPC
	if err := c.emptied(); !errors.Is(err, unix.ENOSPC) || c.err() != nil {
		t.Fatalf("without space for a header: %v, read-only with %v", err, c.err())
	}
	delete(f.fail, "H")
	f.seen()
	c.change(t, 2, false)
	c.wantSync(t, f, "PsHsHs"+"LsHsHs"+"Ls")
}

// The background work empties a log that is half full, and one whose contents had no space, also if nothing is dirty.
func TestTidyEmptiesTheLog(t *testing.T) {
	c, f := newCommitter(t)
	for i := uint64(0); ; i++ {
		c.change(t, i, false)
		if err := c.tidy(); err != nil {
			t.Fatal(err)
		}
		half := int64(c.own.Load().log().Length) / 2
		if c.session == nil {
			break
		}
		if c.session.log.Free() < half {
			t.Fatalf("the log has %d bytes left, less than half", c.session.log.Free())
		}
		if f.seen(); i > uint64(half/journal.EntryLength(1)) {
			t.Fatal("the log never got half full")
		}
	}
	if did := f.seen(); did != "Ls"+"PsHsHs" {
		t.Errorf("with a log that is half full it did %q", did)
	}

	c.change(t, 1, false)
	f.fail["P"] = unix.ENOSPC
	if err := c.emptied(); !errors.Is(err, unix.ENOSPC) || !c.stuck.Load() {
		t.Fatalf("without space: %v, stuck %v", err, c.stuck.Load())
	}
	delete(f.fail, "P")
	f.seen()
	if err := c.tidy(); err != nil || f.seen() != "PsHsHs" || c.stuck.Load() {
		t.Errorf("with space again: %v, stuck %v", err, c.stuck.Load())
	}
}

// Before a sector bitmap block moves, none of its pages may be in the log: a replay would write them to the old place. Pages of
// others may stay.
func TestUnlog(t *testing.T) {
	for _, x := range []struct {
		from, n int64 // bytes, the former from the page that is in the log
		want    string
	}{
		{-cache.PageSize, cache.PageSize, ""},
		{cache.PageSize, cache.PageSize, ""},
		{0, cache.PageSize, "PsHsHs"},
		{-cache.PageSize, 2 * cache.PageSize, "PsHsHs"},
	} {
		for _, dirty := range []bool{false, true} {
			c, f := newCommitter(t)
			c.change(t, 1, false)
			want := "LsHsHs" + "Ls" + x.want
			if !dirty {
				c.wantSync(t, f, "LsHsHs"+"Ls")
				want = x.want
			}
			if err := c.unlog(c.own.Load().batOffset()+x.from, x.n); err != nil || f.seen() != want {
				t.Errorf("unlog of %d bytes from %d on, dirty %v: %v; want %q", x.n, x.from, dirty, err, want)
			}
		}
	}
}

// A panic in a sync round or in the background work ends all writing, and reaches the caller as an error.
func TestPanicInACommit(t *testing.T) {
	for name, do := range map[string]func(c *committer) error{"sync": (*committer).sync, "tidy": (*committer).tidy} {
		c, f := newCommitter(t)
		c.change(t, 1, false)
		f.panic = true
		if err := do(c); err == nil || !errors.Is(c.err(), ErrFailed) {
			t.Errorf("%s: %v, read-only with %v", name, err, c.err())
		}
		f.panic = false
		if err := c.sync(); !errors.Is(err, ErrFailed) || f.seen() != "" {
			t.Errorf("%s: the next sync: %v; want %v, with nothing written", name, err, ErrFailed)
		}
	}
}

// A log without room is emptied before the next entry, with the pages as they were logged.
func TestALogWithoutRoomIsEmptied(t *testing.T) {
	c, f := newCommitter(t)
	c.change(t, 0, false)
	c.wantSync(t, f, "LsHsHs"+"Ls")
	for i := uint64(1); ; i++ {
		c.change(t, i, false)
		if err := c.sync(); err != nil {
			t.Fatal(err)
		}
		switch did := f.seen(); did {
		case "Ls":
			continue
		case "PsHsHs" + "LsHsHs" + "Ls":
		default:
			t.Fatalf("sync %d did %q", i, did)
		}
		var b [8]byte
		if _, err := f.ReadAt(b[:], c.own.Load().batOffset()); err != nil || ondisk.LE.Uint64(b[:]) != i-1 {
			t.Errorf("the page in its place begins with %d, %v; want %d, as it was logged last", ondisk.LE.Uint64(b[:]), err, i-1)
		}
		return
	}
}
