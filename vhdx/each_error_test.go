package vhdx

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A onceFile is a file of which one access fails: a read, a write, a change of the size, or a sync.
type onceFile struct {
	File
	left   atomic.Int64 // accesses until then
	failed atomic.Pointer[string]
}

func (f *onceFile) access(name string, off int64) error {
	if f.left.Add(-1) != 0 {
		return nil
	}
	what := fmt.Sprintf("%s at %#x", name, off)
	f.failed.Store(&what)
	return errInjected
}

func (f *onceFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.access("read", off); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

func (f *onceFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.access("write", off); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *onceFile) Allocate(off, n int64) error {
	if err := f.access("allocation", off); err != nil {
		return err
	}
	return f.File.Allocate(off, n)
}

func (f *onceFile) ZeroRange(off, n int64) error {
	if err := f.access("zeroing", off); err != nil {
		return err
	}
	return f.File.ZeroRange(off, n)
}

func (f *onceFile) Truncate(size int64) error {
	if err := f.access("truncation", size); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *onceFile) Sync() error {
	if err := f.access("sync", 0); err != nil {
		return err
	}
	return f.File.Sync()
}

// No step of a change goes on as if an access of the file had succeeded that has failed: its caller learns of it. What was on the
// disk is there when it is opened again.
func TestEachErrorIsReported(t *testing.T) {
	const from, to = ondisk.MiB - 4096, 5*ondisk.MiB + 4096 // parts of blocks, and whole ones
	sameDisk := map[string]bool{"allocate": true, "compact": true, "compact without a look at zeros": true}
	for name, change := range map[string]func(im *Image) error{
		"write": func(im *Image) error {
			_, err := im.WriteAt(make([]byte, to-from), from)
			return errors.Join(err, im.Sync())
		},
		"zero":     func(im *Image) error { return errors.Join(im.Zero(from, to-from), im.Clean()) },
		"allocate": func(im *Image) error { return errors.Join(im.Allocate(from, to-from), im.Clean()) },
		"compact": func(im *Image) error {
			_, err := im.Compact(t.Context(), CompactOptions{})
			return err
		},
		"compact without a look at zeros": func(im *Image) error {
			_, err := im.Compact(t.Context(), CompactOptions{KeepZeros: true})
			return err
		},
	} {
		for kind, newChain := range looseChains() {
			if testing.Short() && kind != "dynamic" && kind != "differencing" {
				continue
			}
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				c := newChain()
				m := newModel(c)
				for n := int64(1); ; n++ {
					left := c[0].memFile.clone()
					f := &onceFile{File: left}
					files := c.files()
					files[0] = f
					im, err := loadWritable(Options{Discard: DiscardPunch}, files...)
					if err != nil {
						t.Fatal(err)
					}
					f.left.Store(n)
					err = change(im)
					f.left.Store(0)
					im.writer.stop()
					failed := f.failed.Load()
					if failed == nil {
						if err != nil || n < 5 {
							t.Errorf("with %d accesses: %v", n-1, err)
						}
						return
					}
					if err == nil {
						t.Errorf("the %s, access %d, has failed, and is not reported", *failed, n)
					}
					if !sameDisk[name] {
						continue
					}
					files[0] = left
					ro, err := loadReadOnly(files...)
					if err != nil {
						t.Fatalf("after the %s failed: %v", *failed, err)
					}
					m.compareParts(t, ro)
				}
			})
		}
	}
}
