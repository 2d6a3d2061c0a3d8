package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// buildImage makes an image of what content says by byte of the disk, with writes in any order.
func buildImage(t *testing.T, o CreateOptions, content map[int64][]byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "new.vhdx")
	b, err := NewBuilder(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for off, p := range content {
		wg.Go(func() {
			if n, err := b.WriteAt(p, off); n != len(p) || err != nil {
				t.Errorf("WriteAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
			}
		})
	}
	wg.Wait()
	if o.SizeLater {
		if err := b.SetSize(6*ondisk.MiB + 512); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Finish(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the name is taken before Commit: %v", err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := b.Discard(); err != nil {
		t.Errorf("Discard after Commit: %v", err)
	}
	return path
}

func TestBuilder(t *testing.T) {
	const size = 6*ondisk.MiB + 512
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		return p
	}
	content := map[int64][]byte{
		512:                   random(700),                // inside a block
		ondisk.MiB - 512:      random(1024),               // across two
		3*ondisk.MiB + 4096:   random(2*ondisk.MiB + 100), // over several, the last in part
		size - 1:              random(1),
		2*ondisk.MiB + 123456: random(1),
	}
	want := make([]byte, size)
	for off, p := range content {
		copy(want[off:], p)
	}
	for _, o := range []CreateOptions{
		{Size: size, BlockSize: ondisk.MiB},
		{Size: size, BlockSize: 4 * ondisk.MiB, ZeroBlocks: true},
		{Size: size, BlockSize: 2 * ondisk.MiB, Type: Fixed},
		{SizeLater: true, BlockSize: 4 * ondisk.MiB},
		{SizeLater: true, BlockSize: 4 * ondisk.MiB, ZeroBlocks: true},
		{SizeLater: true, BlockSize: 2 * ondisk.MiB, Type: Fixed},
		{SizeLater: true},
	} {
		t.Run(fmt.Sprintf("%s/%d/%t/%t", o.Type, o.BlockSize, o.ZeroBlocks, o.SizeLater), func(t *testing.T) {
			path := buildImage(t, o, content)
			report, err := Check(path, Options{})
			if err != nil || !report.Clean() || report.Leaked != 0 {
				t.Fatalf("Check: %v, %+v", err, report)
			}
			im, err := Open(path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			got := make([]byte, size)
			if n, err := im.ReadAt(got, 0); n != size || err != nil || im.Size() != size {
				t.Fatalf("read %d bytes of %d: %v", n, im.Size(), err)
			}
			if i := firstDifference(got, want); i >= 0 {
				t.Errorf("byte %d is %#x, want %#x", i, got[i], want[i])
			}
			b, blocks := im.Info().Blocks, im.current().geo.PayloadBlocks()
			if rest := b.FullyPresent + b.NotPresent; o.ZeroBlocks && b.FullyPresent+b.Zero != blocks || !o.ZeroBlocks && rest != blocks {
				t.Errorf("blocks %+v", b)
			}
		})
	}
}

func TestBuilderKeepsTheOrderOfReserve(t *testing.T) {
	b, err := NewBuilder(t.Context(), filepath.Join(t.TempDir(), "new.vhdx"), CreateOptions{Size: 8 * ondisk.MiB, BlockSize: ondisk.MiB})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Discard()
	if err := b.Reserve(ondisk.MiB+1, 2*ondisk.MiB); err != nil { // blocks 1 to 3
		t.Fatal(err)
	}
	for i, n := range []int64{1, 2, 3, 0} {
		if got, err := b.place(n); err != nil || got != b.l.dataOff+int64(i)*ondisk.MiB {
			t.Errorf("block %d is at %#x, %v", n, got, err)
		}
	}
}

func TestBuilderRefuses(t *testing.T) {
	b, err := NewBuilder(t.Context(), filepath.Join(t.TempDir(), "new.vhdx"), CreateOptions{Size: ondisk.MiB})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Discard()
	for _, off := range []int64{-1, ondisk.MiB - 1, ondisk.MiB + 1, 1 << 62} {
		if _, err := b.WriteAt([]byte{1, 2}, off); err == nil {
			t.Errorf("WriteAt at %d gave no error", off)
		}
	}
	later, err := NewBuilder(t.Context(), filepath.Join(t.TempDir(), "new.vhdx"), CreateOptions{SizeLater: true})
	if err != nil {
		t.Fatal(err)
	}
	defer later.Discard()
	if err := later.Finish(); err == nil {
		t.Error("Finish without a size gave no error")
	}
	for _, size := range []int64{0, -512, 511, 64*ondisk.TiB + 512} {
		if err := later.SetSize(size); err == nil {
			t.Errorf("SetSize(%d) gave no error", size)
		}
	}
}

// buildOn builds an image in f, or returns the error that stopped it.
func buildOn(f File, o CreateOptions) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	b := &Builder{o: o}
	if err := b.begin(context.Background(), f); err != nil {
		return err
	}
	for n := range b.l.geo.PayloadBlocks() {
		if n%2 == 0 {
			if _, err := b.WriteAt(bytes.Repeat([]byte{0xA5}, 4096), n*o.BlockSize+512); err != nil {
				return err
			}
		}
	}
	return b.Finish()
}

// crashBuild cuts the power at each operation of making an image, and says what is wrong with what is left: it opens
// and is not the whole image, or it does not open though Finish has returned.
func crashBuild(o CreateOptions, dropSync string) error {
	return onHosts(0, func(h host, first, step int) error {
		return untilDone(first, step, func(cut int) (bool, error) { return crashBuildAt(h, cut, o, dropSync) })
	})
}

func crashBuildAt(h host, cut int, o CreateOptions, dropSync string) (done bool, err error) {
	disk := h.disk(bytes.NewReader(nil), 0)
	disk.CutAt(cut)
	err = buildOn(mutantFile{disk, dropSync}, o)
	if done = disk.Powered(); done && err != nil {
		return done, err
	}
	for seed := range uint64(30) {
		im, oerr := loadReadOnly(disk.AfterCut(rand.New(rand.NewPCG(seed, uint64(cut)))))
		if oerr != nil {
			if done {
				return done, fmt.Errorf("seed %d: a finished image does not open: %w", seed, oerr)
			}
			continue
		}
		if err := checkBuilt(im, o); err != nil {
			return done, fmt.Errorf("cut %d, seed %d: what is left opens, but %w", cut, seed, err)
		}
	}
	return done, nil
}

func checkBuilt(im *Image, o CreateOptions) error {
	got, want := make([]byte, 4096), bytes.Repeat([]byte{0xA5}, 4096)
	for n := range im.current().geo.PayloadBlocks() {
		if _, err := im.ReadAt(got, n*o.BlockSize+512); err != nil {
			return err
		}
		if n%2 == 0 && !bytes.Equal(got, want) || n%2 == 1 && !allZero(got) {
			return fmt.Errorf("block %d is wrong", n)
		}
	}
	return nil
}

func TestPowerCutWhileBuilding(t *testing.T) {
	for _, o := range []CreateOptions{
		{Size: 4 * ondisk.MiB, BlockSize: ondisk.MiB},
		{Size: 4 * ondisk.MiB, BlockSize: ondisk.MiB, Type: Fixed},
		{Size: 4 * ondisk.MiB, BlockSize: ondisk.MiB, ZeroBlocks: true},
	} {
		if err := crashBuild(o, ""); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
		if err := crashBuild(o, "(*Builder).finish"); err == nil {
			t.Errorf("%+v: nothing shows that there is no sync", o)
		}
	}
}

// On a host where a hole does harm, there is none.
func TestBuilderWithoutHoles(t *testing.T) {
	f := &countedFile{memFile: newMemFile(0)}
	o, err := CreateOptions{Size: 3 * ondisk.MiB, BlockSize: ondisk.MiB}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	b := &Builder{o: o}
	if err := b.begin(context.Background(), f); err != nil {
		t.Fatal(err)
	}
	if _, err := b.WriteAt([]byte{1}, 2*ondisk.MiB+5); err != nil {
		t.Fatal(err)
	}
	if err := b.Finish(); err != nil {
		t.Fatal(err)
	}
	if size, _ := f.Size(); f.holes != 0 || size != b.l.dataOff+ondisk.MiB {
		t.Errorf("%d holes in a file of %d bytes", f.holes, size)
	}
}

// Where zeros have to be written, making an image can be interrupted.
func TestBuilderIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	o, err := CreateOptions{Size: 8 * ondisk.MiB, Type: Fixed}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	f := &cancellingFile{newMemFile(0), cancel}
	if err := (&Builder{o: o}).begin(ctx, f); !errors.Is(err, context.Canceled) {
		t.Errorf("begin: %v", err)
	}
	if size, _ := f.Size(); size > 2*ondisk.MiB {
		t.Errorf("%d bytes were written", size)
	}
}

// A cancellingFile ends a context at the first write, which it needs where zeros are.
type cancellingFile struct {
	*memFile
	cancel func()
}

func (f *cancellingFile) Allocate(off, n int64) error { return errors.ErrUnsupported }
func (f *cancellingFile) Sparse() bool                { return false }

func (f *cancellingFile) WriteAt(p []byte, off int64) (int, error) {
	f.cancel()
	return f.memFile.WriteAt(p, off)
}

// A countedFile counts the operations that leave holes, which do harm.
type countedFile struct {
	*memFile
	holes int
}

func (f *countedFile) Sparse() bool { return false }

func (f *countedFile) WriteAt(p []byte, off int64) (int, error) {
	if size, _ := f.Size(); off > size {
		f.holes++
	}
	return f.memFile.WriteAt(p, off)
}

func (f *countedFile) Truncate(size int64) error {
	if now, _ := f.Size(); size > now {
		f.holes++
	}
	return f.memFile.Truncate(size)
}

func TestLike(t *testing.T) {
	item := rawItem{uuid.New(), ondisk.ItemIsUser | ondisk.ItemIsVirtualDisk, []byte("mine")}
	img := build(spec{diskSize: 5 * ondisk.MiB, blockSize: 2 * ondisk.MiB, sectorSize: 4096, physical: 4096, items: []rawItem{
		item, {uuid.New(), ondisk.ItemIsUser, []byte("the file's")}, {uuid.New(), ondisk.ItemIsVirtualDisk, nil},
	}})
	im := chain{img}.open(t, Options{})
	o, err := im.Like()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "like.vhdx")
	if err := Create(path, o); err != nil {
		t.Fatal(err)
	}
	like, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer like.Close()
	a, b := im.Info(), like.Info()
	if a.DiskID != b.DiskID || a.DiskSize != b.DiskSize || a.BlockSize != b.BlockSize || a.LogicalSectorSize != b.LogicalSectorSize {
		t.Errorf("made %+v like %+v", b, a)
	}
	items, err := like.current().diskItems()
	if err != nil || len(items) != 2 || items[0].id != item.id || string(items[0].data) != "mine" || items[0].flags != item.flags {
		t.Errorf("items %+v, %v", items, err)
	}
}
