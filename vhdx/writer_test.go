package vhdx

import (
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A layer that replaces the current one brings all of its state with it, but not the headers of the same file: a copy in the file
// that is newer than what the writer has written may not be durable.
func TestReplaceTheCurrentLayer(t *testing.T) {
	for name, another := range map[string]bool{"the same file": false, "another file": true} {
		t.Run(name, func(t *testing.T) {
			img := build(spec{})
			im, err := loadWritable(Options{}, img.memFile)
			if err != nil {
				t.Fatal(err)
			}
			w := im.writer
			w.stop() // nothing goes on in the background
			if _, err := im.WriteAt([]byte("data"), 0); err != nil {
				t.Fatal(err)
			}
			if err := w.clean(); err != nil {
				t.Fatal(err)
			}
			w.dirty.unmapped = []place{{off: ondisk.MiB, size: ondisk.MiB}}
			w.space.freed = []freed{{place{off: 2 * ondisk.MiB, size: ondisk.MiB}, 1}}
			w.headers.dataWrite = uuid.UUID{1}
			before, slot := w.headers.header, w.headers.slot
			newer := before
			newer.SequenceNumber++
			newer.FileWriteGUID = uuid.UUID{2}
			img.write(newer.Encode()[:], ondisk.HeaderOffsets[1-slot])

			l := w.current().again()
			if err := l.load(); err != nil {
				t.Fatal(err)
			}
			func() {
				w.gate.Lock()
				defer w.gate.Unlock()
				w.committer.mu.Lock()
				defer w.committer.mu.Unlock()
				w.replace(l, another)
			}()
			if im.current() != l || w.current() != l || w.space.used != l.space || w.space.size != l.fileSize || w.headers.layer != l {
				t.Error("something still has the old layer")
			}
			for what, f := range map[string]File{"writer": w.file, "allocator": w.space.file, "headers": w.headers.file, "committer": w.committer.file} {
				if m, ok := f.(meteredFile); !ok || m.File != l.file {
					t.Errorf("the %s has another file", what)
				}
			}
			if w.dirty.anyUnmapped() || w.space.anyFreed() {
				t.Error("space of the old layer is still to be given up")
			}
			want, wantSlot, opened, kept := before, slot, true, uuid.UUID{1}
			if another {
				want, wantSlot, opened, kept = newer, 1-slot, false, uuid.Nil
			}
			if h := w.headers.now(); h != want || w.headers.slot != wantSlot || w.headers.everChanged() != opened || w.headers.dataWrite != kept {
				t.Errorf("the header is %+v in slot %d, announced before: %v; want %+v in %d, %v", h, w.headers.slot, w.headers.everChanged(), want, wantSlot, opened)
			}
		})
	}
}
