package vhdx

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Whichever write to the file fails, as on a disk that is full: a compaction or a resize leaves a disk that reads as
// before, or as the new size has it, when the image is opened again, and at once if it can be written on. There the
// same works when there is space.
func TestReshapingOnAFullDisk(t *testing.T) {
	notShort(t, "it fills a disk at every step")
	const size = (1<<17 + 5) * ondisk.MiB // for which the BAT has to move
	for name, reshape := range map[string]func(im *Image) error{
		"compact": func(im *Image) error { _, err := im.Compact(t.Context(), CompactOptions{}); return err },
		"grow":    func(im *Image) error { return im.Resize(t.Context(), size) },
		"shrink":  func(im *Image) error { return im.Resize(t.Context(), 3*ondisk.MiB) },
	} {
		for kind, newChain := range looseChains() {
			if name != "compact" && kind == "dynamic 2 MiB, ends inside a block" {
				continue
			}
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				c := newChain()
				if len(c) > 1 && name == "grow" {
					c[1] = build(spec{diskSize: 4 * ondisk.MiB, sectorSize: c[0].sectorSize, blocks: []blockSpec{{1, ondisk.FullyPresent}}})
				}
				m := newModel(c)
				for n := 0; ; n++ {
					files := c.files()
					left := c[0].memFile.clone()
					f, writes := &faultFile{File: left}, 0
					files[0] = f
					im, err := loadWritable(Options{Discard: DiscardPunch}, files...)
					if err != nil {
						t.Fatal(err)
					}
					f.set(func(f *faultFile) {
						f.failWrite = func(int64) error {
							if writes++; writes > n {
								return unix.ENOSPC
							}
							return nil
						}
					})
					err = reshape(im)
					f.set(func(f *faultFile) { f.failWrite = nil })
					if im.writer.err() == nil { // else the size is unknown until the image is opened again
						m.resized(im.Size()).compareParts(t, im)
					}
					if err == nil {
						if n == 0 {
							t.Error("nothing was written")
						}
						im.writer.stop()
						return
					}
					if im.Size() != m.size && im.writer.err() == nil {
						t.Fatalf("write %d failed: %v, and yet the disk has %d bytes", n, err, im.Size())
					}
					if im.writer.err() == nil {
						if err := reshape(im); err != nil {
							t.Fatalf("after write %d failed: %v", n, err)
						}
						if err := im.Close(); err != nil {
							t.Fatal(err)
						}
					}
					im.writer.stop()
					files[0] = left
					ro, err := loadReadOnly(files...)
					if err != nil {
						t.Fatalf("after write %d failed: %v", n, err)
					}
					m.resized(ro.Size()).compareParts(t, ro)
				}
			})
		}
	}
}
