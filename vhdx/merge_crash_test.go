package vhdx

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/test/powercut"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A circuit is the power of several files: they lose it at one moment.
type circuit struct {
	mu       sync.Mutex
	ops, cut int
}

// step counts an operation, and reports whether there is power before and after it.
func (c *circuit) step() (before, after bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops++
	return c.cut == 0 || c.ops <= c.cut, c.cut == 0 || c.ops < c.cut
}

func (c *circuit) powered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut == 0 || c.ops < c.cut
}

// A wiredFile is a file on a circuit.
type wiredFile struct {
	*powercut.Disk
	c *circuit
}

func (f wiredFile) do(op func() error) error {
	before, after := f.c.step()
	switch {
	case !before:
		return powercut.ErrCut
	case !after:
		f.CutAt(f.Ops() + 1)
	}
	return op()
}

func (f wiredFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.do(func() error { n, err = f.Disk.WriteAt(p, off); return err })
	return n, err
}
func (f wiredFile) Truncate(n int64) error { return f.do(func() error { return f.Disk.Truncate(n) }) }
func (f wiredFile) ZeroRange(off, n int64) error {
	return f.do(func() error { return f.Disk.ZeroRange(off, n) })
}
func (f wiredFile) Allocate(off, n int64) error {
	return f.do(func() error { return f.Disk.Allocate(off, n) })
}
func (f wiredFile) Clone(off int64, src File, from, n int64) error {
	return f.do(func() error { return f.Disk.Clone(off, src, from, n) })
}
func (f wiredFile) Sync() error { return f.do(f.Disk.Sync) }
func (f wiredFile) PunchHole(off, n int64) error {
	return f.do(func() error { return f.Disk.PunchHole(off, n) })
}

// A directory is a chain of images, by name; the first is the child of all.
type directory struct {
	names []string
	files map[string]File
}

// layer loads the named image and its parents, as the images name them. It fails where one is not accepted.
func (f directory) layer(op *opener, name string) (*layer, error) {
	l := op.newLayer(f.files[name], "/directory/"+name)
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if !l.geo.HasParent {
		return l, nil
	}
	parent := path.Base(strings.ReplaceAll(l.meta.locator.Values[ondisk.KeyRelativePath], `\`, "/"))
	p, err := f.layer(op, parent)
	if err != nil {
		return nil, err
	}
	if err := op.checkParent(l, f.fresh(op, parent)); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	l.setParent(p)
	return l, nil
}

// fresh returns a layer that was not loaded yet.
func (f directory) fresh(op *opener, name string) *layer { return op.newLayer(f.files[name], name) }

func (f directory) open(name string) (*Image, error) {
	l, err := f.layer(newOpener(Options{}), name)
	if err != nil {
		return nil, err
	}
	return newImage(l), nil
}

// merge merges the first image into the last. Where the first one's parent is the last by now, that is all there is.
func (f directory) merge() error {
	_, err := f.mergeWith(MergeOptions{Phase: func(string, int64) {}, Progress: func(int64) {}, Shared: func(int64) {}})
	return err
}

func (f directory) mergeWith(o MergeOptions) (r MergeResult, err error) {
	op := newOpener(Options{DetectZeroes: true})
	top, err := f.layer(op, f.names[0])
	if err != nil {
		return r, err
	}
	depth := 0
	for l := top; path.Base(l.path) != f.names[len(f.names)-1]; l = l.parent() {
		depth++
	}
	run, closeAll, err := runOf(op, top, depth+1)
	if err != nil {
		return r, err
	}
	m := &merge{MergeOptions: o, ctx: context.Background(), run: run}
	err = errors.Join(m.do(), closeAll())
	return m.result, err
}

// A mergeTest merges a chain with the power cut, and looks at what is left.
type mergeTest struct {
	chain    chain
	models   []model // what each image of the chain reads as before
	dropSync string
	host     host
	each     int // states to look at for each cut
	states   int // looked at so far
}

func newMergeTest(c chain) *mergeTest {
	mt := &mergeTest{chain: c, each: fewer(3)}
	for i := range c {
		mt.models = append(mt.models, newModel(c[i:]))
	}
	return mt
}

// run cuts the power at the given operation, and runs the merge again from the first of the states that it looks at. It
// reports whether the merge was done by then.
func (mt *mergeTest) run(cut int) (done bool, err error) {
	c := &circuit{cut: cut}
	f := directory{files: map[string]File{}}
	disks := map[string]*powercut.Disk{}
	for i, im := range mt.chain {
		name := chainName(i)
		f.names = append(f.names, name)
		d := mt.host.disk(im.memFile, im.memFile.size)
		d.Tearable = func(off int64) bool { return off < im.dataOff }
		disks[name] = d
		f.files[name] = mutantFile{wiredFile{d, c}, mt.dropSync}
	}
	if err := f.merge(); err != nil && c.powered() {
		return true, fmt.Errorf("failed with the power on: %w", err)
	}
	for s := range mt.each {
		mt.states++
		left := directory{names: f.names, files: map[string]File{}}
		for i, name := range f.names {
			left.files[name] = mutantFile{disks[name].AfterCut(rand.New(rand.NewPCG(uint64(s), uint64(i)))), ""}
		}
		if err := mt.check(left, c.powered()); err != nil {
			return false, fmt.Errorf("cut %d, state %d: %w", cut, s, err)
		}
		if s > 0 {
			continue
		}
		if err := left.merge(); err != nil {
			return false, fmt.Errorf("cut %d, state %d: run again: %w", cut, s, err)
		}
		if err := mt.check(left, true); err != nil {
			return false, fmt.Errorf("cut %d, state %d: after it was run again: %w", cut, s, err)
		}
	}
	return c.powered(), nil
}

// untilDone calls run with the first cut and every step-th after it, until what it does is done before the cut. With
// -short there are fewer cuts, and with -crash.every none is left out.
func untilDone(first, step int, run func(cut int) (done bool, err error)) error {
	switch {
	case *crashEvery:
		step = 1
	case testing.Short():
		step *= 53 // a prime, so that the cuts of different hosts fall on different operations
	}
	for cut := first; ; cut += step {
		if done, err := run(cut); done || err != nil {
			return err
		}
	}
}

func chainName(i int) string { return fmt.Sprintf("image%d.vhdx", i) }

// check checks that the child reads as it did, and that no image reads as anything but what it did, unless it cannot
// be opened. When the merge is done the last one reads as the child does.
func (mt *mergeTest) check(f directory, done bool) error {
	last := len(f.names) - 1
	for i, name := range f.names {
		im, err := f.open(name)
		want := mt.models[i]
		switch {
		case i == last && (done || err != nil):
			want = mt.models[0]
		case i == last && im.current().headers.header().DataWriteGUID == mt.chain[0].dataWrite:
			want = mt.models[0]
		case i == last:
			continue // under way
		case i > 0 && ruleOf(err) == ondisk.RuleParentChanged:
			continue // merged
		}
		if err != nil {
			return err
		}
		got, model := make([]byte, ondisk.MiB), make([]byte, ondisk.MiB)
		for off := int64(0); off < im.Size(); off += ondisk.MiB {
			n := min(ondisk.MiB, im.Size()-off)
			if _, err := im.ReadAt(got[:n], off); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			want.ReadAt(model[:n], off)
			if d := firstDifference(got[:n], model[:n]); d >= 0 {
				return fmt.Errorf("%s: byte %#x reads as %#x, want %#x", name, off+int64(d), got[d], model[d])
			}
		}
	}
	if !done {
		return nil
	}
	child, err := f.open(f.names[0])
	if err != nil {
		return err
	}
	parent, err := f.open(f.names[last])
	if err != nil {
		return err
	}
	a, b := child.current().headers.header().DataWriteGUID, parent.current().headers.header().DataWriteGUID
	if a != b || child.current().parent().path != parent.current().path || child.current().meta.locator.Linkage2 != uuid.Nil {
		return fmt.Errorf("the child has the DataWriteGuid %v, its parent %s; the result %v; the locator says %v",
			a, child.current().parent().path, b, child.current().meta.locator.Values)
	}
	return nil
}

// mergeChain builds a chain of the given images, each the child of the next, with random contents.
func mergeChain(specs ...spec) chain {
	var c chain
	for i, s := range specs {
		s.dataWrite = uuid.New()
		if i > 0 {
			s.dataWrite = c[i-1].parentLinkage()
		}
		if i < len(specs)-1 {
			s.typ = Differencing
			s.locator = parentEntries(chainName(i+1), uuid.New())
		}
		im := build(s)
		im.rng = rand.New(rand.NewPCG(uint64(i), 99))
		for b, e := range im.entries {
			if e.State() == ondisk.FullyPresent {
				im.put(im.random(min(im.blockSize, im.diskSize-b*im.blockSize)), b*im.blockSize)
			}
		}
		c = append(c, im)
	}
	return c
}

func (im *image) parentLinkage() uuid.UUID {
	id, err := ondisk.ParseLinkage(im.locator[0][1])
	if err != nil {
		panic(err)
	}
	return id
}

func mergeSpecs() map[string]func() chain {
	child := []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.PartiallyPresent}, {2, ondisk.Zero}, {3, ondisk.PartiallyPresent}, {5, ondisk.Unmapped}, {6, ondisk.Undefined}}
	base := []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {2, ondisk.FullyPresent}, {4, ondisk.FullyPresent}, {5, ondisk.FullyPresent}, {6, ondisk.FullyPresent}}
	return map[string]func() chain{
		"dynamic": func() chain {
			return mergeChain(spec{diskSize: 8 * ondisk.MiB, blocks: child}, spec{diskSize: 8 * ondisk.MiB, blocks: base})
		},
		"fixed": func() chain {
			return mergeChain(spec{diskSize: 3 * ondisk.MiB, blocks: child[:3]},
				spec{typ: Fixed, diskSize: 3 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {2, ondisk.FullyPresent}}})
		},
		"differencing": func() chain {
			return mergeChain(spec{diskSize: 8 * ondisk.MiB, blocks: child},
				spec{diskSize: 8 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.PartiallyPresent}, {1, ondisk.PartiallyPresent}, {2, ondisk.PartiallyPresent}}},
				spec{diskSize: 8 * ondisk.MiB, blocks: base})[:3]
		},
		"other block size": func() chain {
			return mergeChain(spec{diskSize: 8 * ondisk.MiB, blocks: child}, spec{diskSize: 8 * ondisk.MiB, blockSize: 4 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}}})
		},
		"larger than its parent": func() chain {
			return mergeChain(spec{diskSize: 8 * ondisk.MiB, blocks: child}, spec{diskSize: 5*ondisk.MiB - 512, blocks: base[:4]})
		},
		"smaller than its parent": func() chain {
			return mergeChain(spec{diskSize: 5*ondisk.MiB - 512, blocks: child[:4]}, spec{diskSize: 8 * ondisk.MiB, blocks: base})
		},
		"4K sectors": func() chain {
			return mergeChain(spec{sectorSize: 4096, blocks: child[:3]}, spec{sectorSize: 4096, blocks: base[:3]})
		},
		"ends inside a block": func() chain {
			return mergeChain(spec{diskSize: 7*ondisk.MiB - 512, blocks: child}, spec{diskSize: 7*ondisk.MiB - 512, blocks: base})
		},
	}
}

// A power cut at any moment of a merge leaves a child that opens and reads as before, whose merge can be run again;
// and no image of the chain that reads as anything else than it did.
func TestPowerCutInMerge(t *testing.T) {
	for name, newChain := range mergeSpecs() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mt := newMergeTest(newChain())
			err := onHosts(0, func(h host, first, step int) error {
				mt.host = h
				return untilDone(first, step*step, mt.run) // each cut takes long
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d states", mt.states)
		})
	}
}

// The test is proven by what it finds.
func TestPowerCutInMergeFindsMutants(t *testing.T) {
	notShort(t, "it needs a power cut at every operation")
	for name, m := range map[string]struct {
		dropSync string
		first    int // cut that is tried
	}{
		"no sync of the locator before the parent changes":         {"(*writer).rewriteLocator", 1},
		"no sync of the parent's header before its data":           {"(*writer).setDataWrite", 60},
		"no sync of the data before the parent has the child's id": {"vhdx.settle", 60},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mt := newMergeTest(mergeSpecs()["fixed"]())
			mt.dropSync, mt.each = m.dropSync, 12
			for cut, done := m.first, false; !done; cut++ {
				var err error
				if done, err = mt.run(cut); err != nil {
					t.Logf("found after %d states: %v", mt.states, err)
					return
				}
			}
			t.Errorf("not found with %d states", mt.states)
		})
	}
}
