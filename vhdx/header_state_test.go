package vhdx

import (
	"errors"
	"math"
	"sync"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A headerFile is a file that writes down where headers are written, and when it is synced.
type headerFile struct {
	File
	did       []int64 // the offset of a write, -1 of a sync
	failWrite map[int]error
	failSync  error
	writes    int
}

func (f *headerFile) WriteAt(p []byte, off int64) (int, error) {
	f.writes++
	if err := f.failWrite[f.writes]; err != nil {
		return 0, err
	}
	f.did = append(f.did, off)
	return f.File.WriteAt(p, off)
}

func (f *headerFile) Sync() error {
	f.did = append(f.did, -1)
	return f.failSync
}

func newHeaderState(t *testing.T) (*headerState, *headerFile) {
	t.Helper()
	im := build(spec{})
	f := &headerFile{File: im.memFile, failWrite: make(map[int]error)}
	l := newOpener(Options{}).newLayer(f, "headers")
	if err := l.load(); err != nil {
		t.Fatal(err)
	}
	h := &headerState{failure: &failure{log: nowhere()}, counters: new(counters), newFileWrite: uuid.New}
	h.use(l, f, true)
	return h, f
}

// onDisk checks that a program that opens the file now finds the header that h has.
func (h *headerState) onDisk(t *testing.T) {
	t.Helper()
	hs, err := readHeaders(h.file)
	if err != nil || hs.header() != h.header || hs.current != h.slot {
		t.Errorf("the file has header %+v in slot %d, %v; want %+v in %d", hs.header(), hs.current, err, h.header, h.slot)
	}
}

func TestHeaderUpdateLeavesOneCopyWhole(t *testing.T) {
	h, f := newHeaderState(t)
	current, id := h.slot, uuid.New()
	if err := h.update(func(h *ondisk.Header) { h.FileWriteGUID = id }); err != nil {
		t.Fatal(err)
	}
	if want := [4]int64{ondisk.HeaderOffsets[1-current], -1, ondisk.HeaderOffsets[current], -1}; [4]int64(f.did) != want {
		t.Errorf("it did %v; want %v: the copy that is not current, synced, then the other, synced", f.did, want)
	}
	if h.now().FileWriteGUID != id || h.layer.headers.header() != h.header {
		t.Error("the new header is not the current one")
	}
	h.onDisk(t)
}

func TestHeaderUpdateThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		write    int   // the one that fails; 0 is the first sync
		err      error // of it
		ok       bool  // the update is made
		readOnly bool
	}{
		"no space for the first copy":  {1, unix.ENOSPC, false, false},
		"no quota for the first copy":  {1, unix.EDQUOT, false, false},
		"no space for the second copy": {2, unix.ENOSPC, true, false},
		"the first write fails":        {1, unix.EIO, false, true},
		"the second write fails":       {2, unix.EIO, false, true},
		"a sync fails":                 {0, unix.EIO, false, true},
		"a sync finds no space":        {0, unix.ENOSPC, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			h, f := newHeaderState(t)
			if f.failWrite[c.write] = c.err; c.write == 0 {
				f.failSync = c.err
			}
			before, id := h.header, uuid.New()
			err := h.update(func(h *ondisk.Header) { h.FileWriteGUID = id })
			if (err == nil) != c.ok || !c.ok && !errors.Is(err, c.err) {
				t.Errorf("update: %v", err)
			}
			if errors.Is(h.err(), ErrFailed) != c.readOnly {
				t.Errorf("the image is read-only with %v", h.err())
			}
			if c.readOnly {
				return
			}
			if !c.ok && h.header != before {
				t.Errorf("the header is now %+v; want it as it was", h.header)
			}
			h.onDisk(t)
			f.failWrite = nil
			if err := h.update(func(h *ondisk.Header) { h.LogGUID = id }); err != nil {
				t.Fatalf("the next update: %v", err)
			}
			h.onDisk(t)
		})
	}
}

func TestHeaderSequenceNumbersEnd(t *testing.T) {
	h, f := newHeaderState(t)
	h.header.SequenceNumber = math.MaxUint64 - 1
	if err := h.update(func(*ondisk.Header) {}); err == nil || !errors.Is(h.err(), ErrFailed) || len(f.did) > 0 {
		t.Errorf("update: %v; did %v, and the image is read-only with %v", err, f.did, h.err())
	}
}

func TestAnnounceRenewsWhatAChangeShows(t *testing.T) {
	h, f := newHeaderState(t)
	reserved, repairs := 0, 0
	before := func() error { reserved++; return nil }
	repair := func() bool { repairs++; return true }
	announce := func(kind writeKind, file, data bool) {
		t.Helper()
		old := h.now()
		if err := h.announce(kind, before, repair); err != nil {
			t.Fatal(err)
		}
		now := h.now()
		if (now.FileWriteGUID != old.FileWriteGUID) != file || (now.DataWriteGUID != old.DataWriteGUID) != data {
			t.Errorf("after kind %d: FileWriteGuid renewed %v, DataWriteGuid renewed %v; want %v and %v", kind,
				now.FileWriteGUID != old.FileWriteGUID, now.DataWriteGUID != old.DataWriteGUID, file, data)
		}
		h.onDisk(t)
	}
	if h.everChanged() || h.told() != noWrite {
		t.Error("a change is announced at the start")
	}
	announce(fileWrite, true, false)
	announce(fileWrite, false, false)
	announce(dataWrite, false, true)
	announce(fileWrite, false, false)
	h.cleaned()
	announce(dataWrite, true, true)
	h.cleaned()
	kept := uuid.New()
	h.keepDataWrite(kept)
	announce(dataWrite, true, true)
	if h.now().DataWriteGUID != kept {
		t.Error("the DataWriteGuid to be kept was not")
	}
	if reserved != 3 || repairs != 1 || !h.everChanged() {
		t.Errorf("space for the log was reserved %d times, tables were repaired %d times; want 3 and 1", reserved, repairs)
	}
	h.cleaned()
	writes := f.writes
	if err := h.announce(dataWrite, func() error { return unix.ENOSPC }, repair); !errors.Is(err, unix.ENOSPC) || f.writes != writes || h.told() != noWrite {
		t.Errorf("announce without space: %v, %d writes, told %d", err, f.writes-writes, h.told())
	}
}

// Many changes at once are announced by one of them, and each returns when the headers tell of it.
func TestAnnounceOnceForManyChanges(t *testing.T) {
	h, f := newHeaderState(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			err := h.announce(dataWrite, func() error { return nil }, func() bool { return false })
			if err != nil || h.told() < dataWrite {
				t.Errorf("announce: %v; the headers tell of %d", err, h.told())
			}
		})
	}
	wg.Wait()
	if f.writes != 2 {
		t.Errorf("%d headers were written; want 2", f.writes)
	}
}
