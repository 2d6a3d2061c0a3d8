package vhdx

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Opening an image for writing, reading it, syncing and closing it leaves every byte as it was.
func TestNothingWrittenNothingChanged(t *testing.T) {
	for name, newChain := range modelSpecs() {
		t.Run(name, func(t *testing.T) {
			c := newChain()
			before := c[0].memFile.clone()
			im := c.openWritable(t, Options{})
			newModel(c).compare(t, im)
			for _, do := range []func() error{im.Sync, im.Clean, im.Close} {
				if err := do(); err != nil {
					t.Fatal(err)
				}
			}
			if n := c[0].changes.Load(); n != before.changes.Load() && !sameContent(c[0].memFile, before) {
				t.Errorf("the file was changed %d times", n)
			}
		})
	}
}

func sameContent(a, b *memFile) bool {
	if a.size != b.size || len(a.pages) != len(b.pages) {
		return false
	}
	for n, pg := range a.pages {
		if o := b.pages[n]; o == nil || *o != *pg {
			return false
		}
	}
	return true
}

// What changes nothing that a reader could see is no change: zeros over zeros, holes where there are holes.
func TestNoChangeIsNoWrite(t *testing.T) {
	c := chain{build(spec{diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{1, ondisk.FullyPresent}, {2, ondisk.Zero}}})}
	before := c[0].memFile.clone()
	im := c.openWritable(t, Options{DetectZeroes: true})
	for _, err := range []error{
		im.Zero(2*ondisk.MiB, 6*ondisk.MiB),
		im.Discard(0, ondisk.MiB),
		writeErr(im.WriteAt(make([]byte, 3*ondisk.MiB+5), 2*ondisk.MiB)),
		im.Sync(),
		im.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if !sameContent(c[0].memFile, before) {
		t.Error("the file was changed")
	}
}

func writeErr(_ int, err error) error { return err }

// The first visible change renews FileWriteGuid and DataWriteGuid, in both headers and before the change, and so does
// the first one after the image was made clean. Others do not.
func TestFirstChangeRenewsGUIDs(t *testing.T) {
	c := chain{build(spec{diskSize: 4 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}}})}
	f := &faultFile{File: c[0].memFile}
	read := func() ondisk.Header {
		hs, err := readHeaders(c[0].memFile)
		if err != nil {
			t.Fatal(err)
		}
		if hs.err != [2]error{} {
			t.Fatalf("a header is not valid: %v", hs.err)
		}
		a, b := hs.copies[0], hs.copies[1]
		a.SequenceNumber, b.SequenceNumber = 0, 0
		if a != b && c[0].changes.Load() > 0 {
			t.Errorf("the headers differ: %+v, %+v", a, b)
		}
		return hs.header()
	}
	first := read()
	im, err := loadWritable(Options{}, f)
	if err != nil {
		t.Fatal(err)
	}
	payload := c[0].entries[0].FileOff()
	var announced ondisk.Header
	f.set(func(f *faultFile) {
		f.failWrite = func(off int64) error {
			if off == payload {
				announced = read()
			}
			return nil
		}
	})
	write := func() ondisk.Header {
		t.Helper()
		if _, err := im.WriteAt([]byte("new"), 0); err != nil {
			t.Fatal(err)
		}
		return read()
	}
	second := write()
	if second.FileWriteGUID == first.FileWriteGUID || second.DataWriteGUID == first.DataWriteGUID {
		t.Errorf("GUIDs after the first change: %+v, before: %+v", second, first)
	}
	if announced.DataWriteGUID != second.DataWriteGUID {
		t.Error("the payload was written before the headers said so")
	}
	if third := write(); third != second {
		t.Errorf("a second change rewrote the headers: %+v, %+v", third, second)
	}
	if second.LogGUID != uuid.Nil {
		t.Error("overwriting a present block uses the log")
	}
	if err := im.Clean(); err != nil {
		t.Fatal(err)
	}
	clean := read()
	if fourth := write(); fourth.DataWriteGUID == clean.DataWriteGUID || fourth.FileWriteGUID == clean.FileWriteGUID {
		t.Error("the first change after the image was clean did not renew the GUIDs")
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}

// A log that is replayed into the file changes FileWriteGuid, and leaves DataWriteGuid alone: children know the image
// by it.
func TestReplayKeepsDataWriteGUID(t *testing.T) {
	c := chain{build(spec{diskSize: 4 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {2, ondisk.Zero}}})}
	c[0].logPages(c[0].batOff)
	before, err := readHeaders(c[0].memFile)
	if err != nil {
		t.Fatal(err)
	}
	im := c.openWritable(t, Options{})
	newModel(c).compare(t, im)
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	after, err := readHeaders(c[0].memFile)
	if err != nil {
		t.Fatal(err)
	}
	b, a := before.header(), after.header()
	if !b.Dirty() || a.Dirty() {
		t.Errorf("dirty before: %v, after: %v", b.Dirty(), a.Dirty())
	}
	if a.DataWriteGUID != b.DataWriteGUID {
		t.Error("replay changed DataWriteGuid")
	}
	if a.FileWriteGUID == b.FileWriteGUID {
		t.Error("replay did not change FileWriteGuid")
	}
}

// An image that breaks a rule is refused for writing, and then its log is not replayed either.
func TestRefusedImageIsNotTouched(t *testing.T) {
	c := chain{build(spec{diskSize: 4 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})}
	c[0].setBlockEntry(1, c[0].entries[0]) // two blocks at one place
	c[0].logPages(c[0].metaOff)
	before := c[0].memFile.clone()
	if _, err := loadWritable(Options{}, c[0].memFile); ruleOf(err).Name() != "R49" {
		t.Fatalf("opened, or refused for another reason: %v", err)
	}
	if !sameContent(c[0].memFile, before) {
		t.Error("the file was changed")
	}
}

// How many times a sync syncs the file is the price of everything. The first sync of a session begins the log as well.
func TestSyncsPerSync(t *testing.T) {
	plain := func() chain {
		return chain{build(spec{diskSize: 64 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}}})}
	}
	child := func() chain {
		return chain{build(spec{typ: Differencing, diskSize: 64 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}}}), build(spec{diskSize: 64 * ondisk.MiB})}
	}
	recycled := func() chain {
		c := plain()
		for b := int64(9); b < 12; b++ { // their places are free now
			c[0].setBlock(b, ondisk.FullyPresent)
			c[0].setBlock(b, ondisk.NotPresent)
		}
		return c
	}
	p := bytes.Repeat([]byte{1}, 4096)
	write := func(off int64) func(im *Image) error {
		return func(im *Image) error { return writeErr(im.WriteAt(p, off)) }
	}
	for _, tt := range []struct {
		name  string
		chain func() chain
		do    func(im *Image) error
		want  int64
	}{
		{"nothing", plain, func(*Image) error { return nil }, 0},
		{"overwrite", plain, write(0), 1},
		{"new block in fresh space", plain, write(20 * ondisk.MiB), 1},
		{"four new blocks in fresh space", plain, func(im *Image) error {
			for b := int64(20); b < 24; b++ {
				if err := write(b * ondisk.MiB)(im); err != nil {
					return err
				}
			}
			return nil
		}, 1},
		{"new block in recycled space", recycled, write(20 * ondisk.MiB), 2},
		{"new block that hides the parent's", child, write(20 * ondisk.MiB), 2},
		{"overwrite in a child", child, write(0), 1},
		{"trim", plain, func(im *Image) error { return im.Zero(0, ondisk.MiB) }, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.chain()
			f := &faultFile{File: c[0].memFile}
			files := []File{f}
			for _, l := range c[1:] {
				files = append(files, l.memFile)
			}
			im, err := loadWritable(Options{}, files...)
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			if err := write(60 * ondisk.MiB)(im); err != nil { // begins the session
				t.Fatal(err)
			}
			if err := im.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := tt.do(im); err != nil {
				t.Fatal(err)
			}
			before := f.syncs.Load()
			if err := im.Sync(); err != nil {
				t.Fatal(err)
			}
			if got := f.syncs.Load() - before; got != tt.want {
				t.Errorf("%d syncs of the file, want %d", got, tt.want)
			}
		})
	}
}

// Callers that sync at the same time share rounds.
func TestGroupCommit(t *testing.T) {
	c := chain{build(spec{diskSize: 64 * ondisk.MiB})}
	f := &faultFile{File: c[0].memFile}
	im, err := loadWritable(Options{}, f)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if err := im.Allocate(0, ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	// Hold the round that is under way until all others wait for the next.
	const callers = 16
	im.writer.committer.mu.Lock()
	before := f.syncs.Load()
	var wg sync.WaitGroup
	for i := range int64(callers) {
		wg.Go(func() {
			if _, err := im.WriteAt([]byte{1}, i*2*ondisk.MiB); err != nil {
				t.Error(err)
			}
			if err := im.Sync(); err != nil {
				t.Error(err)
			}
		})
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		im.writer.dirty.mu.Lock()
		n := im.current().counts.FullyPresent
		im.writer.dirty.mu.Unlock()
		if n == callers {
			break
		}
	}
	im.writer.committer.mu.Unlock()
	wg.Wait()
	// The session begins with 3 syncs; those that came in time share one round, stragglers another one or two.
	if got := f.syncs.Load() - before; got > 3+4 {
		t.Errorf("%d callers caused %d syncs of the file", callers, got)
	}
}

// Without any sync, changes still become durable after a while, and an idle image becomes clean.
func TestBackgroundCommitAndIdleClean(t *testing.T) {
	for _, tt := range []struct {
		name  string
		o     Options
		dirty bool // whether the image is to be replayed in the end
	}{
		{"commit", Options{Commit: time.Millisecond}, true},
		{"idle clean", Options{IdleClean: time.Millisecond}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := chain{build(spec{diskSize: 8 * ondisk.MiB})}
			im := c.openWritable(t, tt.o)
			defer im.Close()
			if _, err := im.WriteAt([]byte("data"), ondisk.MiB); err != nil {
				t.Fatal(err)
			}
			var got [4]byte
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				ro, err := loadReadOnly(c[0].memFile.clone())
				if err == nil {
					if _, err := ro.ReadAt(got[:], ondisk.MiB); err != nil {
						t.Fatal(err)
					}
					if string(got[:]) == "data" && ro.current().headers.header().Dirty() == tt.dirty {
						return
					}
				}
				if time.Now().After(deadline) {
					t.Fatalf("after 20 s a copy of the file reads %q, %v", got, err)
				}
			}
		})
	}
}
