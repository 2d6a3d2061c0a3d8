package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vhdxfs/vhdxfs/test/powercut"
)

// A snapshotTest makes snapshots of a disk in use, with the power cut, and looks at what is left.
type snapshotTest struct {
	chain    chain
	disk     model // what it reads as at the beginning
	dropSync string
	host     host
	states   int // looked at so far
}

// run cuts the power of all files at the given operation. It reports whether the work was done by then.
func (st *snapshotTest) run(cut int) (done bool, err error) {
	c := &circuit{cut: cut}
	first := st.host.disk(st.chain[0].memFile, st.chain[0].memFile.size)
	disks := []*powercut.Disk{first} // of the chain that the names are for, the newest first
	wire := func(d *powercut.Disk) File { return mutantFile{wiredFile{d, c}, st.dropSync} }
	im, err := loadWritable(Options{Writable: true}, append([]File{wire(first)}, st.parents()...)...)
	if err != nil && c.powered() {
		return true, err
	}
	h := newHistory(st.disk)
	named := 0 // operations when the newest child got its name
	snapshot := func() error {
		d := st.host.disk(bytes.NewReader(nil), 0)
		f := wire(d)
		o, err := CreateOptions{Parent: "/directory/old.vhdx"}.childOf(im, "/directory/new.vhdx")
		if err == nil {
			o, err = o.withDefaults()
		}
		if err != nil {
			return err
		}
		s := &liveSnapshot{ctx: context.Background(), im: im, w: im.writer, b: &Builder{o: o}, frozen: o.Parent, first: "/directory/new.vhdx"}
		if err := s.b.begin(s.ctx, f); err != nil {
			return err
		}
		if err := s.settle(); err != nil {
			return err
		}
		if err := s.finish(); err != nil {
			return err
		}
		child, err := s.load(f, im.writer.file)
		if err != nil {
			return err
		}
		disks, named = append([]*powercut.Disk{d}, disks...), c.count()
		h.synced()
		im.writer.replace(child, true)
		return nil
	}
	if err == nil {
		step := 0
		err = mixedWorkload(im, h, 3, func(*writer) {
			if step++; step%9 == 0 {
				if err := snapshot(); err != nil && c.powered() {
					panic(err)
				}
			}
		})
		if err == nil {
			h.synced()
		}
		im.writer.stop()
	}
	if c.powered() && err != nil {
		return true, fmt.Errorf("failed with the power on: %w", err)
	}
	chains := [][]*powercut.Disk{disks}
	if named > 0 && c.count() <= named+1 {
		chains = append(chains, disks[1:]) // the name was not durable
	}
	for _, disks := range chains {
		for s := range uint64(3) {
			st.states++
			var files []File
			for i, d := range disks {
				files = append(files, mutantFile{d.AfterCut(rand.New(rand.NewPCG(s, uint64(i)))), ""})
			}
			if err := st.check(h, append(files, st.parents()...), s%2 == 1); err != nil {
				return false, fmt.Errorf("cut %d, state %d, %d files: %w", cut, s, len(disks), err)
			}
		}
	}
	return c.powered(), nil
}

func (st *snapshotTest) parents() (files []File) {
	for _, p := range st.chain[1:] {
		files = append(files, p.memFile)
	}
	return files
}

// check checks that the chain holds the disk, and that each of its images has the parent that it was made for, with
// nothing to replay.
func (st *snapshotTest) check(h *history, files []File, replay bool) error {
	if err := h.checkFiles(files, replay); err != nil {
		return err
	}
	for i := len(files) - 2; i >= 0; i-- {
		im, err := loadReadOnly(files[i:]...)
		if err != nil {
			return err
		}
		parent := im.current().parent()
		if !im.current().meta.locator.Accepts(parent.dataWriteGUID()) {
			return errors.New("an image does not accept its parent")
		}
		if parent.replay != nil {
			return errors.New("a frozen image has a log to replay")
		}
	}
	return nil
}

func (c *circuit) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ops
}

func newSnapshotTest(kind string) *snapshotTest {
	c := crashSpecs()[kind]()
	return &snapshotTest{chain: c, disk: newModel(c)}
}

// A power cut at any moment of a snapshot, or of what is written before and behind it, leaves the image with all that
// was synced, or, from the moment on at which the child has its name, child and image.
func TestPowerCutInSnapshot(t *testing.T) {
	kinds := []string{"dynamic", "differencing", "4K sectors"}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			st := newSnapshotTest(kind)
			err := onHosts(0, func(h host, first, step int) error {
				st.host = h
				return untilDone(first, step, st.run)
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d states", st.states)
		})
	}
}

// The test is proven by what it finds.
func TestPowerCutInSnapshotFindsMutants(t *testing.T) {
	notShort(t, "it needs a power cut at every operation")
	for _, name := range []string{"(*liveSnapshot).settle", "(*liveSnapshot).finish", "(*headerState).write", "(*committer).syncLog"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found := slices.ContainsFunc([]string{"dynamic", "differencing"}, func(kind string) bool {
				st := newSnapshotTest(kind)
				st.dropSync = name
				for cut, done := 1, false; !done; cut++ {
					var err error
					if done, err = st.run(cut); err != nil {
						t.Logf("found after %d states: %v", st.states, err)
						return true
					}
				}
				return false
			})
			if !found {
				t.Error("not found")
			}
		})
	}
}
