package vhdx

import (
	"bytes"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// fileWriteGUID returns the FileWriteGuid that a file has.
func fileWriteGUID(t *testing.T, f File) uuid.UUID {
	t.Helper()
	hs, err := readHeaders(f)
	if err != nil {
		t.Fatal(err)
	}
	return hs.header().FileWriteGUID
}

// A cutFile remembers what FileWriteGuid the file had when it became shorter.
type cutFile struct {
	noAlloc
	t    *testing.T
	cuts []uuid.UUID
}

func (f *cutFile) Truncate(size int64) error {
	if old, _ := f.Size(); size < old {
		f.cuts = append(f.cuts, fileWriteGUID(f.t, f))
	}
	return f.noAlloc.Truncate(size)
}

// A file that becomes shorter is another one than it was before it was opened: its FileWriteGuid is new, and was before the
// cut (MS-VHDX 2.2.2). What others see on the disk is the same.
func TestCutRenewsFileWriteGUID(t *testing.T) {
	loose := func() *image { // the end of the file is free
		b := build(spec{diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
		b.put(bytes.Repeat([]byte{1}, 2*ondisk.MiB), 0)
		b.grow(b.next + 3*ondisk.MiB)
		return b
	}
	for _, tt := range []struct {
		name string
		do   func(t *testing.T, im *Image) error // up to where the file is clean
		cut  func(t *testing.T, im *Image) error
	}{
		{"compact that only cuts", nil, func(t *testing.T, im *Image) error {
			_, err := im.Compact(t.Context(), CompactOptions{})
			return err
		}},
		{"compact that moves", nil, func(t *testing.T, im *Image) error {
			if err := im.Zero(0, ondisk.MiB); err != nil {
				return err
			}
			_, err := im.Compact(t.Context(), CompactOptions{})
			return err
		}},
		{"close behind a clean moment", func(t *testing.T, im *Image) error {
			if _, err := im.WriteAt([]byte{2}, 0); err != nil {
				return err
			}
			return im.writer.clean() // as when idle
		}, func(_ *testing.T, im *Image) error { return im.Close() }},
		{"close behind a resize", func(t *testing.T, im *Image) error {
			return im.Resize(t.Context(), 2*ondisk.MiB)
		}, func(_ *testing.T, im *Image) error { return im.Close() }},
		{"a last writer leaves", func(t *testing.T, im *Image) error {
			if _, err := im.WriteAt([]byte{2}, 0); err != nil {
				return err
			}
			return im.writer.clean() // as when idle
		}, func(_ *testing.T, im *Image) error { return im.writer.leave() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := loose()
			f := &cutFile{noAlloc: noAlloc{b.memFile, true}, t: t}
			im, err := loadWritable(Options{Writable: true}, f)
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			im.writer.stop()
			if tt.do != nil {
				if err := tt.do(t, im); err != nil {
					t.Fatal(err)
				}
			}
			before := fileWriteGUID(t, f)
			hs, _ := readHeaders(f)
			if err := tt.cut(t, im); err != nil {
				t.Fatal(err)
			}
			if len(f.cuts) != 1 || f.cuts[0] == before {
				t.Errorf("FileWriteGuid was %v, and at the cuts %v", before, f.cuts)
			}
			if again, _ := readHeaders(f); tt.name != "compact that moves" && again.header().DataWriteGUID != hs.header().DataWriteGUID {
				t.Error("DataWriteGuid is new, too")
			}
			if h, _ := readHeaders(f); h.header().Dirty() {
				t.Error("the log is to be replayed")
			}
		})
	}
}

// A session that was killed may leave old bytes behind the last block, which a program that appends a block may take for
// the zeros of a file that has grown. The next session that changes the file cuts them off, even if it only replays the log.
func TestLeftoversAreCut(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(im *Image) error
		logs bool // the killed session left a log to replay
		want bool
	}{
		{"nothing but the replay", func(*Image) error { return nil }, true, true},
		{"a write", func(im *Image) error { return writeErr(im.WriteAt([]byte{1}, 0)) }, false, true},
		{"nothing", func(*Image) error { return nil }, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := build(spec{diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}}})
			im, err := loadWritable(Options{Writable: true}, noAlloc{b.memFile, true})
			if err != nil {
				t.Fatal(err)
			}
			im.writer.stop()
			for blk := int64(1); blk < 4; blk++ {
				if _, err := im.WriteAt(bytes.Repeat([]byte("old "), ondisk.MiB/4), blk*ondisk.MiB); err != nil {
					t.Fatal(err)
				}
			}
			if err := im.Sync(); err != nil {
				t.Fatal(err)
			}
			if err := im.Zero(2*ondisk.MiB, 2*ondisk.MiB); err != nil {
				t.Fatal(err)
			}
			if err := im.Sync(); err != nil {
				t.Fatal(err)
			}
			if !tt.logs {
				if err := im.writer.cleanAlone(func() error { return nil }); err != nil {
					t.Fatal(err)
				}
			}
			end := im.writer.space.lastOffset() - 2*ondisk.MiB // the places of both wait for what reads them
			left := b.memFile.clone()                          // killed
			again, err := loadWritable(Options{Writable: true}, noAlloc{left, true})
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.do(again); err != nil {
				t.Fatal(err)
			}
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
			if size, _ := left.Size(); (size == end) != tt.want {
				t.Errorf("the file has %#x bytes, its last block ends at %#x", size, end)
			}
		})
	}
}
