package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// liveChain makes a chain of n images and opens its newest for writing, whose path it returns.
func liveChain(t *testing.T, n int, blockSizes ...int64) (l *liveImage, paths []string) {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		path := filepath.Join(dir, fmt.Sprintf("%d.vhdx", i))
		o := CreateOptions{Size: 12 * ondisk.MiB, BlockSize: ondisk.MiB}
		if i > 0 {
			o = CreateOptions{Parent: paths[i-1]}
		}
		if len(blockSizes) > 0 {
			o.BlockSize = blockSizes[i]
		}
		if err := Create(path, o); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
		l = openLive(t, path, Options{})
		for b := range 4 {
			l.write(byte(10*i+b+1), (b*3+i)%11*ondisk.MiB+512*i, 70_000)
		}
		l.zero((i+2)*ondisk.MiB, ondisk.MiB)
		if i < n-1 {
			if err := l.im.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return l, paths
}

// Writes, trims, reads and syncs go on at full speed while the chain is merged into one image: the copy comes to an end.
func TestLiveMergeWhileWritten(t *testing.T) {
	l, paths := liveChain(t, 4, ondisk.MiB, 2*ondisk.MiB, ondisk.MiB, 4*ondisk.MiB)
	newest := paths[3]
	stop := make(chan struct{})
	var busy sync.WaitGroup
	var mu sync.Mutex // guards l.want
	for k := range int64(3) {
		busy.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(k), 3))
			begin, size := k*4*ondisk.MiB, int64(4*ondisk.MiB)
			own := bytes.Clone(l.want[begin:][:size])
			for {
				select {
				case <-stop:
					mu.Lock()
					copy(l.want[begin:], own)
					mu.Unlock()
					return
				default:
				}
				n := int64(512 * (1 + rng.IntN(400)))
				off := rng.Int64N(size-n) &^ 511
				var err error
				switch rng.IntN(8) {
				case 0:
					err = l.im.Zero(begin+off, n)
					clear(own[off:][:n])
				case 1:
					err = l.im.Sync()
				case 2:
					_ = l.im.Info()
				default:
					p := bytes.Repeat([]byte{byte(rng.IntN(255) + 1)}, int(n))
					_, err = l.im.WriteAt(p, begin+off)
					copy(own[off:], p)
				}
				got := make([]byte, size)
				if err == nil {
					_, err = l.im.ReadAt(got, begin)
				}
				if err != nil || !bytes.Equal(got, own) {
					t.Errorf("part %d reads otherwise at %#x (%v)", k, firstDifference(got, own), err)
					return
				}
			}
		})
	}
	for _, step := range []struct {
		child string
		o     MergeOptions
	}{
		{paths[2], MergeOptions{Delete: true}},
		{"", MergeOptions{Into: paths[0], KeepName: true, Delete: true}},
	} {
		if _, err := l.im.Merge(t.Context(), step.child, step.o); err != nil {
			t.Fatal(err)
		}
	}
	if l.im.Path() != newest || l.im.current().parent() != nil {
		t.Errorf("the image is %s", l.im.Path())
	}
	close(stop)
	busy.Wait()
	l.check("after the merge")
	if err := l.im.Close(); err != nil {
		t.Fatal(err)
	}
	reads(t, "closed", newest, Options{}, l.want)
	if r, err := Check(newest, Options{}); err != nil || len(r.Errors) > 0 {
		t.Errorf("%v %+v", err, r)
	}
	if left, _ := os.ReadDir(filepath.Dir(newest)); len(left) != 1 {
		t.Errorf("left are %v", left)
	}
}

// An image that is refused, or cannot be locked, leaves the chain as it was, and a later merge goes on.
func TestLiveMergeRefuses(t *testing.T) {
	l, paths := liveChain(t, 3)
	for _, tc := range []struct {
		child string
		o     MergeOptions
		want  string
	}{
		{"/elsewhere", MergeOptions{}, "is not in the chain"},
		{paths[0], MergeOptions{}, "has no parent"},
		{paths[1], MergeOptions{Into: paths[2]}, "is not a parent of"},
		{"", MergeOptions{Into: paths[2]}, "is not a parent of"},
		{"", MergeOptions{Reflink: imagefile.ReflinkAlways}, "omit --reflink"},
	} {
		if _, err := l.im.Merge(t.Context(), tc.child, tc.o); !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q %+v: %v", tc.child, tc.o, err)
		}
	}
	reader, err := Open(paths[0], Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, child := range []string{"", paths[1]} {
		if _, err := l.im.Merge(t.Context(), child, MergeOptions{Into: paths[0]}); !errors.Is(err, ErrLocked) {
			t.Errorf("%q: %v", child, err)
		}
	}
	// The locks are those of before: others may read.
	for _, path := range paths[:2] {
		again, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
		if _, err := Open(path, Options{Writable: true}); !errors.Is(err, ErrLocked) {
			t.Errorf("a writer of %s: %v", path, err)
		}
	}
	reader.Close()
	l.write(99, 5*ondisk.MiB, 3000)
	l.check("after refusals")
	if r, err := l.im.Merge(t.Context(), "", MergeOptions{Into: paths[0], DryRun: true}); err != nil || !r.DryRun || len(r.Merged) != 2 {
		t.Errorf("%+v %v", r, err)
	}
	if r, err := l.im.Merge(t.Context(), "", MergeOptions{Into: paths[0]}); err != nil || r.Path != paths[0] || len(r.Merged) != 2 {
		t.Errorf("%+v %v", r, err)
	}
	l.check("merged")
	// Both of the others still show the disk, until it is written.
	l.im.Clean()
	l.write(98, 6*ondisk.MiB, 3000)
	if err := l.im.Close(); err != nil {
		t.Fatal(err)
	}
	reads(t, "closed", paths[0], Options{}, l.want)
	if _, err := Open(paths[2], Options{}); ruleOf(err) != ondisk.RuleParentChanged && !errors.Is(err, ErrCorrupt) {
		t.Errorf("the merged image opens: %v", err)
	}
}

// A disk that was opened beside other programs because of lock=try is not merged under them: they would read another disk.
func TestLiveMergeRefusesBesideReaders(t *testing.T) {
	for _, mode := range []LockMode{LockTry, LockOn} {
		l, paths := liveChain(t, 3)
		if err := l.im.Close(); err != nil {
			t.Fatal(err)
		}
		l = openLive(t, paths[2], Options{Lock: mode})
		reader, err := Open(paths[0], Options{})
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, reader.Size())
		if _, err := reader.ReadAt(want, 0); err != nil {
			t.Fatal(err)
		}
		for _, child := range []string{"", paths[1]} {
			if _, err := l.im.Merge(t.Context(), child, MergeOptions{Into: paths[0]}); !errors.Is(err, ErrLocked) {
				t.Errorf("lock=%s, %q: %v", mode, child, err)
			}
		}
		got := make([]byte, reader.Size())
		if _, err := reader.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("lock=%s: the other program reads another disk (%v)", mode, err)
		}
		reader.Close()
		if _, err := l.im.Merge(t.Context(), "", MergeOptions{Into: paths[0]}); err != nil {
			t.Errorf("lock=%s, when it has ended: %v", mode, err)
		}
		l.check("merged")
	}
}

// A failingChain has files that give errors while fails is set.
type failingChain struct {
	chainFiles
	fails *atomic.Pointer[unix.Errno]
}

func (f failingChain) reopen(l *layer) (File, error) {
	file, err := f.chainFiles.reopen(l)
	return failingWrites{file, f.fails}, err
}

type failingWrites struct {
	File
	fails *atomic.Pointer[unix.Errno]
}

func (f failingWrites) WriteAt(p []byte, off int64) (int, error) {
	if e := f.fails.Load(); e != nil {
		return 0, *e
	}
	return f.File.WriteAt(p, off)
}

func (f failingWrites) Sync() error {
	if e := f.fails.Load(); e != nil && *e == unix.EIO {
		return *e
	}
	return f.File.Sync()
}

func (f failingWrites) Truncate(n int64) error {
	if e := f.fails.Load(); e != nil {
		return *e
	}
	return f.File.Truncate(n)
}

// Where a parent cannot be written, at any moment, the merge ends with the error; the disk can be written and merged again.
func TestLiveMergeFails(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOSPC, unix.EIO} {
		for _, child := range []int{2, 1} {
			t.Run(fmt.Sprintf("%v, image %d", errno, child), func(t *testing.T) {
				t.Parallel()
				l, paths := liveChain(t, 3)
				for after := 0; ; after++ {
					var fails atomic.Pointer[unix.Errno]
					left := after
					count := func(int64) {
						if left--; left < 0 {
							fails.Store(&errno)
						}
					}
					w := l.im.writer
					o := MergeOptions{Into: paths[child-1], Phase: func(string, int64) { count(0) }, Progress: count, Shared: func(int64) {}}
					m := &liveMerge{merge: merge{MergeOptions: o, ctx: t.Context()}, im: l.im, w: w, files: failingChain{hostFiles{}, &fails}}
					if err := m.plan(paths[child]); err != nil {
						t.Fatal(err)
					}
					err := m.do()
					l.write(byte(after+1), (after%12)*ondisk.MiB+300, 5000)
					l.check(fmt.Sprintf("after %d", after))
					if err == nil {
						break
					}
					if !errors.Is(err, errno) {
						t.Fatalf("after %d: %v", after, err)
					}
				}
				if err := l.im.Close(); err != nil {
					t.Fatal(err)
				}
				path := paths[2]
				if child == 2 {
					path = paths[1]
				}
				reads(t, "closed", path, Options{}, l.want)
			})
		}
	}
}

// A countedChain has files that give an error from the write or sync with the given number on, the file at one path alone.
type countedChain struct {
	chainFiles
	path  string
	after *atomic.Int64
}

func (f countedChain) reopen(l *layer) (File, error) {
	file, err := f.chainFiles.reopen(l)
	if err != nil || l.path != f.path {
		return file, err
	}
	return countedWrites{file, f.after}, nil
}

type countedWrites struct {
	File
	after *atomic.Int64
}

func (f countedWrites) WriteAt(p []byte, off int64) (int, error) {
	if f.after.Add(-1) < 0 {
		return 0, unix.EIO
	}
	return f.File.WriteAt(p, off)
}

func (f countedWrites) Sync() error {
	if f.after.Add(-1) < 0 {
		return unix.EIO
	}
	return f.File.Sync()
}

// Where an image of the chain other than the result cannot be written, the chain keeps its order, and a later merge does the rest.
func TestLiveMergeFailsInOtherImages(t *testing.T) {
	for _, failing := range []int{1, 2} { // the one that is merged, and its child
		t.Run(fmt.Sprint("image ", failing), func(t *testing.T) {
			t.Parallel()
			l, paths := liveChain(t, 4)
			for n := int64(0); ; n++ {
				var after atomic.Int64
				after.Store(n)
				m := &liveMerge{merge: merge{MergeOptions: MergeOptions{Phase: func(string, int64) {}, Progress: func(int64) {}, Shared: func(int64) {}},
					ctx: t.Context()}, im: l.im, w: l.im.writer, files: countedChain{hostFiles{}, paths[failing], &after}}
				if err := m.plan(paths[1]); err != nil {
					t.Fatal(err)
				}
				err := m.do()
				var chain []string
				for p := l.im.current(); p != nil && len(chain) <= len(paths); p = p.parent() {
					chain = append(chain, filepath.Base(p.path))
				}
				want := "3.vhdx 2.vhdx 1.vhdx 0.vhdx"
				if after.Load() >= 0 || strings.Join(chain, " ") != want { // the last writes are made when it is left out
					want = "3.vhdx 2.vhdx 0.vhdx"
				}
				if got := strings.Join(chain, " "); got != want {
					l.im.current().setParent(nil) // else it may have no end
					t.Fatalf("an error of write %d leaves the chain %s, want %s (%v)", n, got, want, err)
				}
				l.write(byte(n+1), int(n%12)*ondisk.MiB+300, 5000)
				l.check(fmt.Sprintf("after an error of write %d", n))
				if after.Load() >= 0 {
					break
				}
				if !errors.Is(err, unix.EIO) {
					t.Fatalf("an error of write %d: %v", n, err)
				}
				if len(chain) < len(paths) {
					l, paths = liveChain(t, 4)
				}
			}
			if err := l.im.Close(); err != nil {
				t.Fatal(err)
			}
			reads(t, "closed", paths[3], Options{}, l.want)
		})
	}
}

// A waitingFile waits in each read of a sector, and tells of its end.
type waitingFile struct {
	File
	reading, goOn, closed chan struct{}
}

func (f *waitingFile) ReadAt(p []byte, off int64) (int, error) {
	if len(p) == 512 {
		f.reading <- struct{}{}
		<-f.goOn
	}
	return f.File.ReadAt(p, off)
}

func (f *waitingFile) Close() error {
	close(f.closed)
	return f.File.Close()
}

// A write of part of a sector reads the rest of it, and an image that was merged stays open until it has.
func TestLiveMergeAwaitsReadsOfWrites(t *testing.T) {
	l, paths := liveChain(t, 4)
	merged := l.im.current().parent().parent()
	f := &waitingFile{merged.file, make(chan struct{}), make(chan struct{}), make(chan struct{})}
	merged.file = f
	wrote, did := make(chan error, 1), make(chan error, 1)
	const off = 7*ondisk.MiB + 1034 // what image 1 alone holds
	begin := sync.OnceFunc(func() {
		go func() {
			_, err := l.im.WriteAt(bytes.Repeat([]byte{77}, 100), off)
			wrote <- err
		}()
		<-f.reading
	})
	go func() {
		_, err := l.im.Merge(t.Context(), paths[1], MergeOptions{Phase: func(string, int64) { begin() }})
		did <- err
	}()
	for l.im.current().parent().parent() == merged {
		time.Sleep(time.Millisecond)
	}
	select {
	case <-f.closed:
		t.Error("the image was closed while it was read")
	case <-time.After(300 * time.Millisecond): // where it is closed too early, that takes less
	}
	close(f.goOn)
	if err := errors.Join(<-wrote, <-did); err != nil {
		t.Fatal(err)
	}
	copy(l.want[off:], bytes.Repeat([]byte{77}, 100))
	l.check("merged")
}
