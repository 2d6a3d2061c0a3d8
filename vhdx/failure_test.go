package vhdx

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// After a failed sync nothing is known any more: every write and sync fails, reads go on, and what was synced before
// is there when the image is opened again.
func TestFailedSyncMakesReadOnly(t *testing.T) {
	c := chain{build(spec{diskSize: 8 * ondisk.MiB})}
	f := &faultFile{File: c[0].memFile}
	im, err := loadWritable(Options{}, f)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("safe"), 1024)
	if _, err := im.WriteAt(want, ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	if err := im.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, err := im.WriteAt(want, 3*ondisk.MiB); err != nil {
		t.Fatal(err)
	}
	f.set(func(f *faultFile) { f.failSync = errInjected })
	if err := im.Sync(); !errors.Is(err, errInjected) {
		t.Fatalf("Sync = %v, want the file's error", err)
	}
	f.set(func(f *faultFile) { f.failSync = nil })
	left := c[0].memFile.clone()
	writes := f.writes.Load()
	for name, err := range map[string]error{
		"WriteAt": writeErr(im.WriteAt(want, 0)),
		"again":   writeErr(im.WriteAt(want, ondisk.MiB)),
		"Zero":    im.Zero(ondisk.MiB, ondisk.MiB),
		"Sync":    im.Sync(),
		"Clean":   im.Clean(),
		"Close":   im.Close(),
	} {
		if !errors.Is(err, ErrFailed) {
			t.Errorf("%s after the failure = %v, want ErrFailed", name, err)
		}
	}
	if f.writes.Load() != writes {
		t.Error("the file was written after the failure")
	}
	again, err := loadWritable(Options{}, left)
	if err != nil {
		t.Fatalf("open what is left: %v", err)
	}
	defer again.Close()
	got := make([]byte, len(want))
	if _, err := again.ReadAt(got, ondisk.MiB); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was synced reads %.8q, %v", got, err)
	}
}

// A write that gets no space fails with ENOSPC, leaves the disk as it was, and works when there is space again.
func TestNoSpace(t *testing.T) {
	for name, newChain := range modelSpecs() {
		t.Run(name, func(t *testing.T) {
			c := newChain()
			if c[0].typ == Fixed {
				t.Skip("a fixed disk has all its space")
			}
			m := newModel(c)
			f := &faultFile{File: c[0].memFile, limit: c[0].memFile.size}
			files := []File{f}
			for _, l := range c[1:] {
				files = append(files, l.memFile)
			}
			im, err := loadWritable(Options{}, files...)
			if err != nil {
				t.Fatal(err)
			}
			p := bytes.Repeat([]byte{7}, 3000)
			off := c[0].diskSize - 4096
			if c[0].entries[off/c[0].blockSize].State() == ondisk.FullyPresent {
				t.Fatal("the test wants a block without a place at the end")
			}
			before := c[0].memFile.clone()
			for range 3 {
				if _, err := im.WriteAt(p, off); !errors.Is(err, unix.ENOSPC) {
					t.Fatalf("write to a full disk: %v", err)
				}
			}
			m.compare(t, im)
			if err := im.Sync(); err != nil {
				t.Fatalf("sync on a full disk: %v", err)
			}
			if !bytes.Equal(batOf(c[0], before), batOf(c[0], c[0].memFile)) {
				t.Error("the BAT has changed")
			}
			if n := im.writer.dirty.claimed; n != 0 {
				t.Errorf("%d pages are still claimed", n)
			}
			f.set(func(f *faultFile) { f.limit = 0 })
			if _, err := im.WriteAt(p, off); err != nil {
				t.Fatalf("write with space again: %v", err)
			}
			m.WriteAt(p, off)
			m.compare(t, im)
			if err := im.Close(); err != nil {
				t.Fatal(err)
			}
			files[0] = c[0].memFile
			ro, err := loadReadOnly(files...)
			if err != nil {
				t.Fatal(err)
			}
			m.compare(t, ro)
		})
	}
}

func batOf(im *image, f *memFile) []byte {
	b := make([]byte, im.batLen)
	if _, err := f.ReadAt(b, im.batOff); err != nil {
		panic(err)
	}
	return b
}

// An error from reading the file reaches that read alone.
func TestReadErrorIsThatReadsOnly(t *testing.T) {
	c := chain{build(spec{diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{1, ondisk.FullyPresent}, {2, ondisk.FullyPresent}}})}
	bad := c[0].entries[1].FileOff()
	f := &faultFile{File: c[0].memFile}
	im, err := loadWritable(Options{}, f)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	f.set(func(f *faultFile) {
		f.failRead = func(off int64) error {
			if off >= bad && off < bad+ondisk.MiB {
				return unix.EIO
			}
			return nil
		}
	})
	p := make([]byte, 512)
	if _, err := im.ReadAt(p, ondisk.MiB); !errors.Is(err, unix.EIO) {
		t.Errorf("read of the bad block: %v, want EIO", err)
	}
	if _, err := im.ReadAt(p, 2*ondisk.MiB); err != nil {
		t.Errorf("read of another block: %v", err)
	}
	if _, err := im.WriteAt(p, ondisk.MiB); err != nil {
		t.Errorf("write to the bad block: %v", err)
	}
	if err := im.Sync(); err != nil {
		t.Errorf("sync: %v", err)
	}
}

// An error from writing payload reaches that write alone, and a block that was to get its first bytes has no place.
func TestWriteErrorIsThatWritesOnly(t *testing.T) {
	c := chain{build(spec{diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{1, ondisk.FullyPresent}}})}
	m := newModel(c)
	f := &faultFile{File: c[0].memFile}
	im, err := loadWritable(Options{}, f)
	if err != nil {
		t.Fatal(err)
	}
	f.set(func(f *faultFile) {
		f.failWrite = func(off int64) error {
			if off >= c[0].dataOff {
				return unix.EIO
			}
			return nil
		}
	})
	for _, off := range []int64{ondisk.MiB, 5 * ondisk.MiB} {
		if _, err := im.WriteAt([]byte{1}, off); !errors.Is(err, unix.EIO) {
			t.Errorf("write at %#x: %v, want EIO", off, err)
		}
	}
	f.set(func(f *faultFile) { f.failWrite = nil })
	m.compare(t, im)
	if _, err := im.WriteAt([]byte{1}, 5*ondisk.MiB); err != nil {
		t.Errorf("write afterwards: %v", err)
	}
	m.WriteAt([]byte{1}, 5*ondisk.MiB)
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	ro, err := loadReadOnly(c[0].memFile)
	if err != nil {
		t.Fatal(err)
	}
	m.compare(t, ro)
}

// An image without a log cannot be written safely.
func TestNoLogNoWriting(t *testing.T) {
	c := chain{build(spec{noLog: true})}
	if _, err := loadWritable(Options{}, c[0].memFile); err == nil {
		t.Error("opened for writing")
	}
}

// What does not lie inside the disk is refused, and nothing is written.
func TestWriteBeyondTheEnd(t *testing.T) {
	c := chain{build(spec{diskSize: 4 * ondisk.MiB})}
	before := c[0].memFile.clone()
	im := c.openWritable(t, Options{})
	for _, err := range []error{
		writeErr(im.WriteAt([]byte{1}, 4*ondisk.MiB)),
		writeErr(im.WriteAt([]byte{1, 2}, 4*ondisk.MiB-1)),
		writeErr(im.WriteAt([]byte{1}, -1)),
		im.Zero(0, 5*ondisk.MiB),
		im.Zero(1<<62, 1<<62),
		im.Allocate(4*ondisk.MiB, 1),
	} {
		if !errors.Is(err, ErrBeyondEnd) {
			t.Errorf("got %v, want ErrBeyondEnd", err)
		}
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if !sameContent(c[0].memFile, before) {
		t.Error("the file was changed")
	}
}
