package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/test/powercut"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// planOn plans the repair of the image in f, of which there has to be one.
func planOn(t *testing.T, f File) *repairer {
	t.Helper()
	r := planLeft(t, f)
	if len(r.left) > 0 || !r.d.changed() {
		t.Fatalf("repairs %+v, left %+v", r.fixes, r.left)
	}
	return r
}

// planLeft plans the repair of what is left in f, which may need none.
func planLeft(t *testing.T, f File) *repairer {
	t.Helper()
	op := newOpener(Options{})
	op.collect = true
	r, err := newRepairer(t.Context(), op, op.newLayer(f, "image.vhdx"), RepairOptions{FreeLeaks: true})
	if err == nil {
		err = r.plan()
	}
	if err != nil {
		t.Fatalf("plan: %v", err)
	}
	return r
}

// An undoDouble is an undo file in memory, on the same circuit as the image. It is there once Commit has begun to
// make it so; before, the power cut has lost it.
type undoDouble struct {
	c     *circuit // nil is always on
	limit int      // bytes for which there is space; 0 is any number
	b     bytes.Buffer
	there bool
}

func (u *undoDouble) step() error {
	if u.c == nil {
		return nil
	}
	if _, after := u.c.step(); !after {
		return powercut.ErrCut
	}
	return nil
}

func (u *undoDouble) Write(p []byte) (int, error) {
	if u.limit > 0 && u.b.Len()+len(p) > u.limit {
		return 0, unix.ENOSPC
	}
	if err := u.step(); err != nil {
		return 0, err
	}
	return u.b.Write(p)
}

func (u *undoDouble) Commit() error {
	if err := u.step(); err != nil {
		return err
	}
	u.there = true
	return nil
}

func (u *undoDouble) create() (undoFile, error) { return u, nil }
func (u *undoDouble) Discard() error            { return nil }
func (u *undoDouble) String() string            { return "double.undo" }

func (u *undoDouble) remove() error {
	u.there = false
	return nil
}

func (u *undoDouble) open() (*undoReader, io.Closer, error) {
	r, err := newUndoReader(bytes.NewReader(u.b.Bytes()), int64(u.b.Len()))
	return r, io.NopCloser(nil), err
}

// sameBytes reports whether two files hold the same.
func sameBytes(a, b File) bool {
	an, aerr := a.Size()
	bn, berr := b.Size()
	if err := errors.Join(aerr, berr); err != nil {
		panic(err)
	}
	if an != bn {
		return false
	}
	x, y := make([]byte, ondisk.MiB), make([]byte, ondisk.MiB)
	for off := int64(0); off < an; off += ondisk.MiB {
		n := min(ondisk.MiB, an-off)
		if err := errors.Join(readFull(a, x[:n], off, "one"), readFull(b, y[:n], off, "other")); err != nil {
			panic(err)
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return false
		}
	}
	return true
}

// crashImages are damaged images, which need every kind of change together.
func crashImages() map[string]*image {
	dirty := build(spec{dataOff: 5 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	dirty.setBlockEntry(2, dirty.entries[0])
	dirty.setBlockEntry(3, ondisk.NewBATEntry(ondisk.FullyPresent, ondisk.TiB))
	dirty.logPages(dirty.batOff)

	tables := build(spec{regions: []ondisk.Region{{GUID: otherGUID, Offset: 1 << 62, Length: ondisk.MiB}}, blocks: oneBlock})
	tables.setBlockEntry(1, ondisk.NewBATEntry(ondisk.UnmappedDraft, 0))
	tables.changeItem(ondisk.DiskSizeGUID, func(m *ondisk.MetadataItem) { m.Flags = 0 })

	copy2 := build(spec{regions: []ondisk.Region{{GUID: otherGUID, Offset: 1 << 62, Length: ondisk.MiB}}, blocks: oneBlock})
	copy2.write([]byte{1}, ondisk.RegionTableOffsets[0]+60000)

	noLog := build(spec{noLog: true, blocks: oneBlock})
	return map[string]*image{
		"grows": damagedForUndo(false), "shrinks": damagedForUndo(true), "dirty": dirty, "region tables": tables, "one region table": copy2, "no log": noLog,
	}
}

// Wherever the power is cut, the undo file restores the image to the byte, or the image was not touched yet; and without
// it the repair can be run again.
func TestPowerCutInRepair(t *testing.T) {
	for name, im := range crashImages() {
		t.Run(name, func(t *testing.T) {
			cuts := 0
			cutAt := func(h host, cut int) (done bool, err error) {
				c := &circuit{cut: cut}
				disk := h.disk(im.memFile, im.size)
				undo := &undoDouble{c: c}
				_, err = planOn(t, wiredFile{disk, c}).apply(undo)
				if done = c.powered(); (err == nil) != done {
					return done, fmt.Errorf("cut %d: %w", cut, err)
				}
				for seed := range uint64(5) {
					if err := afterRepairCut(t, im, disk, undo, rand.New(rand.NewPCG(seed, 1))); err != nil {
						return done, fmt.Errorf("cut %d, state %d: %w", cut, seed, err)
					}
				}
				cuts++
				return done, nil
			}
			err := onHosts(0, func(h host, first, step int) error {
				return untilDone(first, step, func(cut int) (bool, error) { return cutAt(h, cut) })
			})
			if err != nil {
				t.Fatal(err)
			}
			if cuts < 10 && !testing.Short() {
				t.Errorf("%d cuts only", cuts)
			}
		})
	}
}

func afterRepairCut(t *testing.T, im *image, disk *powercut.Disk, undo *undoDouble, rng *rand.Rand) error {
	left := disk.AfterCut(rng)
	if !undo.there {
		if !sameBytes(left, im.memFile) {
			return errors.New("the image was changed before the undo file was there")
		}
		return nil
	}
	again := host{noHoles: left.NoHoles, noFallocate: left.NoFallocate}.disk(left, sizeOfDisk(t, left))
	if r := planLeft(t, again); len(r.left) > 0 {
		return fmt.Errorf("the repair cannot be run again: %+v", r.left)
	} else if r.d.changed() {
		if _, err := r.apply(&undoDouble{}); err != nil {
			return fmt.Errorf("run again: %w", err)
		}
		if r := planLeft(t, again); len(r.left) > 0 || len(r.fixes) > 0 && !r.onlyLeaks() {
			return fmt.Errorf("after it was run again: %+v, %+v", r.left, r.fixes)
		}
	}

	// The undo loses power, too, and is run again.
	u, _, err := undo.open()
	if err != nil {
		return err
	}
	before, err := firstBytes(left, sizeOfDisk(t, left))
	if err != nil {
		return err
	}
	left.CutAt(1 + rng.IntN(12))
	if _, err := u.restore(t.Context(), left, false); err != nil && !errors.Is(err, powercut.ErrCut) {
		return fmt.Errorf("undo: %w", err)
	}
	left = left.AfterCut(rng)
	if err := undoShows(t, u, im, before, left); err != nil {
		return err
	}
	if _, err := u.restore(t.Context(), left, false); err != nil {
		return fmt.Errorf("undo again: %w", err)
	}
	if !sameBytes(left, im.memFile) {
		return errors.New("the undo file did not bring back what was there")
	}
	return nil
}

// undoShows returns an error if left is neither what it was before or after the undo of a repair of im, nor looks like one
// whose undo was interrupted.
func undoShows(t *testing.T, u *undoReader, im *image, before, left File) error {
	t.Helper()
	r, err := newRepairer(t.Context(), newOpener(Options{}), newOpener(Options{}).newLayer(left, "image.vhdx"), RepairOptions{})
	if err != nil {
		return err
	}
	if r.interrupted(u) || sameBytes(left, im.memFile) {
		return nil
	}
	size, err := before.Size()
	if err != nil {
		return err
	}
	same, err := firstBytes(left, size) // the undo makes room first, in which there is nothing
	if err != nil {
		return err
	}
	if !sameBytes(same, before) {
		return errors.New("it does not show that the undo was interrupted")
	}
	return nil
}

// firstBytes returns a file of the first n bytes of f.
func firstBytes(f File, n int64) (File, error) {
	b, m := make([]byte, n), newMemFile(n)
	if err := readFull(f, b, 0, "a file"); err != nil {
		return nil, err
	}
	_, err := m.WriteAt(b, 0)
	return m, err
}

// onlyLeaks reports whether space is all that there is to repair.
func (r *repairer) onlyLeaks() bool {
	for _, f := range r.fixes {
		if f.Structure != "file" {
			return false
		}
	}
	return true
}

func sizeOfDisk(t *testing.T, d *powercut.Disk) int64 {
	t.Helper()
	size, err := d.Size()
	if err != nil {
		t.Fatal(err)
	}
	return size
}
