package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"testing"

	"github.com/vhdxfs/vhdxfs/test/powercut"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A liveMergeTest merges images of a chain while the disk is written, with the power cut, and looks at what is left.
type liveMergeTest struct {
	chain        chain
	disk         model   // what it reads as at the beginning
	models       []model // what each image reads as then
	seed         uint64
	child, into  int // numbers of images; 0 is the one that is written
	keep, remove bool
	dropSync     string
	dropAll      string // nothing that it does reaches a file
	mutant       func(m *liveMerge)
	host         host
	each         int // states to look at for each cut
	states       int // looked at so far
}

// A cutDir is the names of a chain's files, which change as the files do.
type cutDir struct {
	c     *circuit
	files map[string]File // by path
	gone  map[string]bool // removed, which a cut may undo
	took  [2]string       // the second has the name of the first
	maybe bool            // or not yet
}

func (f *cutDir) reopen(l *layer) (File, error) { return f.files[l.path], nil }
func (f *cutDir) share(*layer) error            { return nil }

func (f *cutDir) remove(l *layer) error {
	if before, _ := f.c.step(); !before {
		return powercut.ErrCut
	}
	f.gone[l.path] = true
	return nil
}

func (f *cutDir) rename(from, to *layer) (bool, error) {
	before, after := f.c.step()
	if !before {
		return false, powercut.ErrCut
	}
	f.took, f.maybe = [2]string{to.path, from.path}, !after
	if !after {
		return true, powercut.ErrCut
	}
	return true, nil
}

// A busyFile calls meanwhile before it is written or synced.
type busyFile struct {
	File
	meanwhile func()
}

func (f *busyFile) WriteAt(p []byte, off int64) (int, error) {
	f.meanwhile()
	return f.File.WriteAt(p, off)
}

func (f *busyFile) Sync() error {
	f.meanwhile()
	return f.File.Sync()
}

// A deafFile ignores the changes that a function makes.
type deafFile struct {
	File
	drop string
}

func (f deafFile) WriteAt(p []byte, off int64) (int, error) {
	if calledBy(f.drop) {
		return len(p), nil
	}
	return f.File.WriteAt(p, off)
}

func (f deafFile) Sync() error {
	if calledBy(f.drop) {
		return nil
	}
	return f.File.Sync()
}

// run cuts the power of all files at the given operation. It reports whether the work was done by then.
func (lt *liveMergeTest) run(cut int) (done bool, err error) {
	c := &circuit{cut: cut}
	rng := rand.New(rand.NewPCG(lt.seed, 77))
	h := newHistory(lt.disk)
	var im *Image
	busy := false
	// meanwhile does what a program does with the disk at any moment of the merge at which changes do not wait.
	meanwhile := func() {
		if im == nil || busy || !c.powered() || rng.IntN(3) > 0 || !im.writer.gate.TryRLock() {
			return
		}
		im.writer.gate.RUnlock()
		busy = true
		defer func() { busy = false }()
		if err := oneChange(im, h, rng); err != nil && c.powered() {
			panic(err)
		}
	}
	directory := &cutDir{c: c, files: map[string]File{}, gone: map[string]bool{}}
	disks := map[string]*powercut.Disk{}
	f := dirOf(len(lt.chain))
	for i, of := range lt.chain {
		d := lt.host.disk(of.memFile, of.memFile.size)
		d.Tearable = func(off int64) bool { return off < of.dataOff }
		disks[f.names[i]] = d
		file := File(mutantFile{wiredFile{d, c}, lt.dropSync})
		if lt.dropAll != "" {
			file = deafFile{file, lt.dropAll}
		}
		if i > 0 {
			file = &busyFile{file, meanwhile}
		}
		f.files[f.names[i]], directory.files["/directory/"+f.names[i]] = file, file
	}
	err = lt.merge(f, directory, &im, h, rng, meanwhile)
	if err != nil && c.powered() {
		return true, fmt.Errorf("failed with the power on: %w", err)
	}
	for s := range lt.each {
		after := func(name string) File {
			d := disks[name]
			if s == lt.each-1 { // killed, with the power on
				b := d.Bytes()
				return powercut.New(bytes.NewReader(b), int64(len(b)))
			}
			return d.AfterCut(rand.New(rand.NewPCG(lt.seed<<8|uint64(s), uint64(name[len("image")]))))
		}
		left := dirOf(len(lt.chain))
		for _, name := range left.names {
			left.files[name] = after(name)
		}
		names := []bool{directory.took[0] != ""}
		if directory.maybe {
			names = []bool{false, true}
		}
		for _, took := range names {
			lt.states++
			err := lt.checkParents(left)
			if err == nil {
				err = lt.check(left, directory, took, h, s%2 == 1)
			}
			if err != nil {
				return false, fmt.Errorf("cut %d, state %d, renamed %v: %w", cut, s, took, err)
			}
		}
	}
	return c.powered(), nil
}

func dirOf(n int) directory {
	f := directory{files: map[string]File{}}
	for i := range n {
		f.names = append(f.names, chainName(i))
	}
	return f
}

// merge opens the chain, writes, merges, and writes again.
func (lt *liveMergeTest) merge(f directory, host *cutDir, now **Image, h *history, rng *rand.Rand, meanwhile func()) error {
	op := newOpener(Options{Writable: true, Discard: DiscardPunch})
	top, err := f.layer(op, f.names[0])
	if err != nil {
		return err
	}
	w, err := newWriter(op, top)
	if err != nil {
		return err
	}
	im := &Image{own: w.own, writer: w}
	defer w.stop()
	change := func(n int) error {
		for range n {
			if !host.c.powered() { // a sync that has nothing to do would succeed
				return powercut.ErrCut
			}
			if err := oneChange(im, h, rng); err != nil {
				return err
			}
		}
		return nil
	}
	if err := change(4); err != nil {
		return err
	}
	*now = im
	o := MergeOptions{KeepName: lt.keep, Delete: lt.remove, Into: "/directory/" + f.names[lt.into], Phase: func(string, int64) { meanwhile() }, Progress: func(int64) { meanwhile() }, Shared: func(int64) {}}
	m := &liveMerge{merge: merge{MergeOptions: o, ctx: context.Background()}, im: im, w: w, files: host, lastBytes: 128 << 10}
	if lt.mutant != nil {
		lt.mutant(m)
	}
	if err := m.plan("/directory/" + f.names[lt.child]); err != nil {
		return err
	}
	if err := m.do(); err != nil {
		return err
	}
	*now = nil
	if err := change(6); err != nil {
		return err
	}
	if err := im.Clean(); err != nil {
		return err
	}
	h.synced()
	return nil
}

// check checks that the disk is found, by the name by which it would be mounted, or, if what has that name is no valid image any
// more, by that of the result.
func (lt *liveMergeTest) check(f directory, host *cutDir, took bool, h *history, replay bool) error {
	if took {
		name, by := host.took[0][len("/directory/"):], host.took[1][len("/directory/"):]
		f.files[name] = f.files[by]
		delete(f.files, by)
	}
	tries := []string{""}
	for gone := range host.gone {
		tries = append(tries, gone[len("/directory/"):])
	}
	for _, gone := range tries {
		g := directory{names: f.names, files: map[string]File{}}
		for name, file := range f.files {
			if name != gone {
				g.files[name] = file
			}
		}
		im, err := g.openFor(f.names[0], false)
		if lt.child == 0 && !lt.keep && (err != nil && ruleOf(err) == ondisk.RuleParentChanged || errors.Is(err, errNoFile) && gone == f.names[0]) {
			if im, err = g.openFor(f.names[lt.into], false); err == nil && h.disk.size != im.Size() {
				err = errors.New("the parent does not have the size of the disk")
			}
		}
		if err != nil {
			return fmt.Errorf("without %q: %w", gone, err)
		}
		if err := h.checkAll(im); err != nil {
			return fmt.Errorf("without %q: %w", gone, err)
		}
		if !replay || gone != "" {
			continue
		}
		// The next mount replays the log.
		if im, err = g.openFor(path.Base(im.current().path), true); err != nil {
			return err
		}
		im.writer.stop()
		if err := h.checkAll(im); err != nil {
			return fmt.Errorf("after the replay: %w", err)
		}
	}
	return nil
}

// checkParents checks that each parent that says it is the disk that it was still reads as that, or as the one that was merged into
// it if it says so.
func (lt *liveMergeTest) checkParents(f directory) error {
	for i := 1; i < len(lt.chain); i++ {
		im, err := f.openFor(f.names[i], false)
		if ruleOf(err) == ondisk.RuleParentChanged {
			continue
		}
		if err != nil {
			return err
		}
		id := im.current().dataWriteGUID()
		for j := 1; j <= i; j++ {
			if id != lt.chain[j].dataWrite {
				continue
			}
			if err := newHistory(lt.models[j]).checkAll(im); err != nil {
				return fmt.Errorf("%s, which says that it is %s: %w", f.names[i], f.names[j], err)
			}
		}
	}
	return nil
}

var errNoFile = errors.New("no such file")

// openFor opens a chain, its first image for writing if so.
func (f directory) openFor(name string, writable bool) (*Image, error) {
	if f.files[name] == nil {
		return nil, errNoFile
	}
	op := newOpener(Options{Writable: writable})
	l, err := f.layer(op, name)
	if err != nil || !writable {
		return newImage(l), err
	}
	w, err := newWriter(op, l)
	if err != nil {
		return nil, err
	}
	return &Image{own: w.own, writer: w}, nil
}

// checkAll is check for the whole disk: what was not written reads as at the beginning.
func (h *history) checkAll(im *Image) error {
	if err := h.check(im); err != nil {
		return err
	}
	got, want := make([]byte, ondisk.MiB), make([]byte, ondisk.MiB)
	for off := int64(0); off < h.disk.size; off += ondisk.MiB {
		n := min(ondisk.MiB, h.disk.size-off)
		if _, err := im.ReadAt(got[:n], off); err != nil {
			return fmt.Errorf("read at %#x: %w", off, err)
		}
		h.disk.ReadAt(want[:n], off)
		if bytes.Equal(got[:n], want[:n]) {
			continue
		}
		for at := off; at < off+n; at += h.sector {
			a, b := got[at-off:][:h.sector], want[at-off:][:h.sector]
			if h.versions[at] == nil && !bytes.Equal(a, b) {
				return fmt.Errorf("sector at %#x, which was not written, reads %x…, want %x…", at, a[:8], b[:8])
			}
		}
	}
	return nil
}

func liveMergeTests() map[string]func() *liveMergeTest {
	child := []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.PartiallyPresent}, {2, ondisk.Zero}, {5, ondisk.Unmapped}}
	middle := []blockSpec{{0, ondisk.PartiallyPresent}, {1, ondisk.FullyPresent}, {3, ondisk.PartiallyPresent}, {4, ondisk.Zero}, {5, ondisk.PartiallyPresent}}
	base := []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {2, ondisk.FullyPresent}, {4, ondisk.FullyPresent}, {5, ondisk.FullyPresent}}
	const size = 6 * ondisk.MiB
	two := func() chain {
		return mergeChain(spec{diskSize: size, blocks: child}, spec{diskSize: size, blocks: base})
	}
	three := func() chain {
		return mergeChain(spec{diskSize: size, blocks: child}, spec{diskSize: size, blocks: middle}, spec{diskSize: size, blocks: base})
	}
	four := func() chain {
		return mergeChain(spec{diskSize: size, blocks: child}, spec{diskSize: size, blocks: middle}, spec{diskSize: size, blocks: child}, spec{diskSize: size, blocks: base})
	}
	sized := func(child_, base_ int64, block int64) func() chain {
		return func() chain {
			return mergeChain(spec{diskSize: child_, blocks: child[:3]}, spec{diskSize: base_, blockSize: block, blocks: base[:1]})
		}
	}
	test := func(c func() chain, lt liveMergeTest) func() *liveMergeTest {
		return func() *liveMergeTest {
			t := lt
			t.chain, t.each = c(), fewer(4)
			for i := range t.chain {
				t.models = append(t.models, newModel(t.chain[i:]))
			}
			t.disk = t.models[0]
			return &t
		}
	}
	return map[string]func() *liveMergeTest{
		"own":                                test(two, liveMergeTest{into: 1}),
		"own, keep name":                     test(two, liveMergeTest{into: 1, keep: true}),
		"own, removed":                       test(two, liveMergeTest{into: 1, remove: true}),
		"own into a middle one":              test(three, liveMergeTest{into: 1, keep: true}),
		"own over two":                       test(three, liveMergeTest{into: 2, keep: true, remove: true}),
		"own, larger blocks below":           test(sized(size, size, 2*ondisk.MiB), liveMergeTest{into: 1, keep: true}),
		"own, larger than its parent":        test(sized(size, 3*ondisk.MiB-512, ondisk.MiB), liveMergeTest{into: 1}),
		"own, smaller than its parent":       test(sized(4*ondisk.MiB, size, ondisk.MiB), liveMergeTest{into: 1, remove: true}),
		"frozen":                             test(three, liveMergeTest{child: 1, into: 2}),
		"frozen, removed":                    test(three, liveMergeTest{child: 1, into: 2, remove: true}),
		"frozen, keep name":                  test(three, liveMergeTest{child: 1, into: 2, keep: true}),
		"frozen below a frozen one":          test(four, liveMergeTest{child: 2, into: 3, remove: true}),
		"frozen below a frozen one, renamed": test(four, liveMergeTest{child: 2, into: 3, keep: true}),
		"frozen over two":                    test(four, liveMergeTest{child: 1, into: 3, remove: true}),
	}
}

// A power cut, or a kill, at any moment of a merge of a disk in use, or of what is written meanwhile and behind it, leaves a chain
// that shows the disk with all that was synced.
func TestPowerCutInLiveMerge(t *testing.T) {
	for name, newTest := range liveMergeTests() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			states, less := 0, 25 // each cut takes long
			if testing.Short() {
				less = 2 // since untilDone leaves out most of them
			}
			for seed := range uint64(*crashRounds) {
				lt := newTest()
				lt.seed = seed
				if *crashRounds > 1 {
					lt.each, less = 16, 5
				}
				err := onHosts(seed, func(h host, first, step int) error {
					lt.host = h
					return untilDone(first+int(seed)%less, less*step, lt.run)
				})
				if states += lt.states; err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			t.Logf("%d states", states)
		})
	}
}

// The test is proven by what it finds.
func TestPowerCutInLiveMergeFindsMutants(t *testing.T) {
	notShort(t, "it needs a power cut at every operation")
	deaf := func(m *liveMerge) {
		before := m.Phase
		m.Phase = func(name string, total int64) {
			before(name, total)
			m.w.follower.Store(nil)
		}
	}
	for name, m := range map[string]struct {
		test     string
		dropSync string
		dropAll  string
		mutant   func(*liveMerge)
	}{
		"the child does not accept the coming identity":           {test: "own", dropAll: "(*writer).expectParent"},
		"a frozen child does not accept it":                       {test: "frozen", dropAll: "(*writer).expectParent"},
		"nor the last one":                                        {test: "own, keep name", dropAll: "(*writer).replaceLocator"},
		"no sync of the locator before the parent changes":        {test: "own", dropSync: "(*writer).rewriteLocator"},
		"no sync of the locator before the identity goes":         {test: "own", dropSync: "(*writer).replaceLocator"},
		"no sync of the parent's header before its data":          {test: "frozen, keep name", dropSync: "(*writer).setDataWrite"},
		"no sync of the data before the parent has the id":        {test: "own, keep name", dropSync: "vhdx.settle"},
		"the same for a frozen one":                               {test: "frozen, removed", dropSync: "vhdx.settle"},
		"no sync of the locator before the merged one is removed": {test: "frozen, removed", dropSync: "(*merge).skip"},
		"changes meanwhile are not noted":                         {test: "own, keep name", mutant: deaf},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			states := 0
			for seed := range uint64(4) {
				lt := liveMergeTests()[m.test]()
				lt.seed, lt.dropSync, lt.dropAll, lt.mutant, lt.each = seed, m.dropSync, m.dropAll, m.mutant, 12
				for cut, done := 20, false; !done; cut++ {
					var err error
					if done, err = lt.run(cut); err != nil {
						t.Logf("found after %d states: %v", states+lt.states, err)
						return
					}
				}
				states += lt.states
			}
			t.Errorf("not found with %d states", states)
		})
	}
}
