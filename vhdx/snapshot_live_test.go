package vhdx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A liveImage is an image that is open for writing, and what its disk has to read as.
type liveImage struct {
	t    *testing.T
	im   *Image
	want []byte
}

func openLive(t *testing.T, path string, o Options) *liveImage {
	t.Helper()
	o.Writable = true
	im, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	l := &liveImage{t, im, make([]byte, im.Size())}
	if _, err := im.ReadAt(l.want, 0); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *liveImage) write(b byte, off, n int) {
	l.t.Helper()
	p := bytes.Repeat([]byte{b}, n)
	if _, err := l.im.WriteAt(p, int64(off)); err != nil {
		l.t.Fatal(err)
	}
	copy(l.want[off:], p)
}

func (l *liveImage) zero(off, n int) {
	l.t.Helper()
	if err := l.im.Zero(int64(off), int64(n)); err != nil {
		l.t.Fatal(err)
	}
	clear(l.want[off : off+n])
}

func (l *liveImage) check(what string) {
	l.t.Helper()
	got := make([]byte, l.im.Size())
	if _, err := l.im.ReadAt(got, 0); err != nil || !bytes.Equal(got, l.want) {
		l.t.Errorf("%s: the disk reads differently (%v)", what, err)
	}
}

// reads fails the test unless the image at path reads as want.
func reads(t *testing.T, what, path string, o Options, want []byte) {
	t.Helper()
	im, err := Open(path, o)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	defer im.Close()
	got := make([]byte, im.Size())
	if _, err := im.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %s reads differently (%v)", what, path, err)
	}
}

// An image that is in use is frozen as it is at one moment, over and over; the disk goes on, and a merge makes one
// image of all again.
func TestLiveSnapshot(t *testing.T) {
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprintf("keep name %v", keep), func(t *testing.T) {
			p := newWrittenChain(t, 2)
			image := p[1]
			if err := os.Chmod(image, 0o640); err != nil {
				t.Fatal(err)
			}
			l := openLive(t, image, Options{})
			frozen := map[string][]byte{}
			for i := range 4 {
				l.write(byte(0x10+i), i*700_000, 900_000)
				l.zero((3-i)*1<<20, 1<<20)
				if i%2 == 0 {
					if err := l.im.Sync(); err != nil {
						t.Fatal(err)
					}
				}
				r, err := l.im.Snapshot(context.Background(), "", SnapshotOptions{KeepName: keep})
				if err != nil {
					t.Fatal(err)
				}
				if keep && (r.Child != image || frozen[r.Frozen] != nil) || !keep && frozen[r.Child] != nil || r.Child != l.im.Path() {
					t.Errorf("%+v, the path is %s", r, l.im.Path())
				}
				frozen[r.Frozen] = bytes.Clone(l.want)
				if st, err := os.Stat(r.Child); err != nil || st.Mode().Perm() != 0o640 {
					t.Errorf("%v, %v", st, err)
				}
				for path, want := range frozen { // readers are let in, and writers are not
					reads(t, "while the disk is in use", path, Options{}, want)
					if im, err := Open(path, Options{Writable: true}); !errors.Is(err, ErrLocked) {
						t.Errorf("%s could be opened for writing: %v, %v", path, im, err)
					}
				}
				if im, err := Open(r.Child, Options{}); !errors.Is(err, ErrLocked) {
					t.Errorf("the child could be opened: %v, %v", im, err)
				}
				l.check("behind the snapshot")
			}
			l.write(0x77, 12345, 54321)
			l.check("in the end")
			last := l.im.Path()
			if err := l.im.Close(); err != nil {
				t.Fatal(err)
			}
			reads(t, "after the close", last, Options{}, l.want)
			for path, want := range frozen {
				reads(t, "after the close", path, Options{}, want)
				sound(t, path)
			}
			sound(t, last)
			r, err := Merge(context.Background(), last, MergeOptions{Into: p[0], Delete: true, KeepName: keep})
			if err != nil {
				t.Fatal(err)
			}
			reads(t, "after the merge", r.Path, Options{}, l.want)
			sound(t, r.Path)
			if n := len(fileSums(t, filepath.Dir(image))); n != 1 {
				t.Errorf("%d files are left", n)
			}
		})
	}
}

// If a snapshot is killed at any moment, the image has all that was written, by the name that it has then, and can be
// written. The directory is copied behind each step, as a kill would leave it.
func TestLiveSnapshotKilled(t *testing.T) {
	for _, keep := range []bool{false, true} {
		p := newWrittenChain(t, 2)
		l := openLive(t, p[1], Options{})
		l.write(0x42, 100_000, 2_000_000)
		var steps []string
		copies := t.TempDir()
		o := SnapshotOptions{KeepName: keep}
		o.step = func(step string) {
			steps = append(steps, step)
			if step == "link" || step == "begin" { // what was written is not synced, but a kill loses nothing of it
				if err := l.im.Sync(); err != nil {
					t.Error(err)
				}
			}
			if im, err := Open(p[1], Options{}); !errors.Is(err, ErrLocked) {
				t.Errorf("%s: another program could open the image: %v, %v", step, im, err)
			}
			if err := os.CopyFS(filepath.Join(copies, step), os.DirFS(filepath.Dir(p[1]))); err != nil {
				t.Error(err)
			}
		}
		r, err := l.im.Snapshot(context.Background(), "", o)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range steps {
			in := func(path string) string { return filepath.Join(copies, step, filepath.Base(path)) }
			reads(t, step, in(p[1]), Options{}, l.want)
			if _, err := os.Stat(in(r.Child)); err == nil && !keep {
				reads(t, step, in(r.Child), Options{}, l.want)
				writeTo(t, in(r.Child))
			}
			writeTo(t, in(p[1]))
			sound(t, in(p[1]))
		}
		if want := 3 + 2*map[bool]int{true: 1}[keep]; len(steps) != want {
			t.Errorf("the steps were %v, not %d", steps, want)
		}
	}
}

// A snapshot that fails leaves the image in use, and no file behind.
func TestLiveSnapshotRefuses(t *testing.T) {
	p := newWrittenChain(t, 2)
	dir := filepath.Dir(p[0])
	if err := os.WriteFile(filepath.Join(dir, "there"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := openLive(t, p[1], Options{})
	names := func() string {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(entries)
	}
	before := names()
	cancelled, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("not now"))
	moved := filepath.Join(dir, "moved")
	for _, tc := range []struct {
		name string
		ctx  context.Context
		file string
		o    SnapshotOptions
		is   error
		want string
	}{
		{"exists", nil, "there", SnapshotOptions{}, fs.ErrExist, "exists"},
		{"itself", nil, filepath.Base(p[1]), SnapshotOptions{}, ErrOptions, "is the parent"},
		{"its parent", nil, filepath.Base(p[0]), SnapshotOptions{}, ErrOptions, "one of its parents"},
		{"a path", nil, "sub/x.avhdx", SnapshotOptions{}, ErrOptions, "not a file name"},
		{"up", nil, "..", SnapshotOptions{}, ErrOptions, "not a file name"},
		{"the root", nil, "/", SnapshotOptions{}, ErrOptions, "not a file name"},
		{"too long", nil, strings.Repeat("x", 256), SnapshotOptions{}, nil, "too long"},
		{"what cannot stand in an image", nil, "a:b", SnapshotOptions{ParentPaths: []string{"nonsense"}}, ErrOptions, "form"},
		{"interrupted", cancelled, "", SnapshotOptions{}, nil, "not now"},
		{"moved at first", nil, moved, SnapshotOptions{}, nil, "is no longer the image"},
		{"moved meanwhile", nil, "", SnapshotOptions{step: func(step string) {
			if step == "complete" {
				if err := os.Rename(p[1], moved); err != nil {
					t.Error(err)
				}
			}
		}}, nil, "is no longer the image"},
		{"moved meanwhile, keep name", nil, "", SnapshotOptions{KeepName: true, step: func(step string) {
			if step == "begin" {
				if err := os.Rename(p[1], moved); err != nil {
					t.Error(err)
				}
			}
		}}, nil, "is no longer the image"},
	} {
		ctx := tc.ctx
		if ctx == nil {
			ctx = context.Background()
		}
		if tc.file == moved {
			if err := os.Rename(p[1], moved); err != nil {
				t.Fatal(err)
			}
		}
		_, err := l.im.Snapshot(ctx, tc.file, tc.o)
		if err == nil || tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
		if _, err := os.Stat(moved); err == nil {
			if err := os.Rename(moved, p[1]); err != nil {
				t.Fatal(err)
			}
		}
		if now := names(); now != before {
			t.Errorf("%s: the directory holds %s, before %s", tc.name, now, before)
		}
		l.write(byte(len(tc.name)), 4096, 100_000)
		l.check(tc.name)
	}
	l.im.writer.reshaping.Lock()
	if _, err := l.im.Snapshot(context.Background(), "", SnapshotOptions{}); !errors.Is(err, ErrReshaping) {
		t.Errorf("during a compaction: %v", err)
	}
	l.im.writer.reshaping.Unlock()
	if err := l.im.Close(); err != nil {
		t.Fatal(err)
	}
	reads(t, "in the end", p[1], Options{}, l.want)
	sound(t, p[1])

	l = openLive(t, p[1], Options{Parents: []string{p[0]}})
	if _, err := l.im.Snapshot(context.Background(), "", SnapshotOptions{}); !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), "parent=") {
		t.Errorf("with a parent named by level: %v", err)
	}
	if err := l.im.Close(); err != nil {
		t.Fatal(err)
	}

	im, err := Open(p[1], Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if _, err := im.Snapshot(context.Background(), "", SnapshotOptions{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("open for reading: %v", err)
	}
}

// The child has a log, free space and a size of its own, for all kinds of images.
func TestLiveSnapshotStartsAnew(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk.vhdx")
	if err := Create(image, CreateOptions{Size: 64 * ondisk.MiB, BlockSize: ondisk.MiB, LogSize: 5 * ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	l := openLive(t, image, Options{})
	for i := range 40 {
		l.write(byte(i), i*ondisk.MiB, ondisk.MiB)
	}
	l.zero(10*ondisk.MiB, 5*ondisk.MiB)
	syncs := l.im.Stats().FileSyncs
	r, err := l.im.Snapshot(context.Background(), "", SnapshotOptions{KeepName: true})
	if err != nil {
		t.Fatal(err)
	}
	if now := l.im.Stats().FileSyncs; now < syncs {
		t.Errorf("%d syncs were counted, and now %d", syncs, now)
	}
	for i := range 3 {
		l.write(0x55, (50+i)*ondisk.MiB, ondisk.MiB)
		if err := l.im.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.im.Close(); err != nil {
		t.Fatal(err)
	}
	reads(t, "in the end", image, Options{}, l.want)
	sound(t, image)
	if in := diskInfo(t, image, Options{}); in.FileSize != 7*ondisk.MiB || in.Log.Length != DefaultLogSize {
		t.Errorf("the child has %d bytes, its log %d", in.FileSize, in.Log.Length)
	}
	if in := diskInfo(t, r.Frozen, Options{}); in.FileSize > 48*ondisk.MiB {
		t.Errorf("the frozen image has %d bytes", in.FileSize)
	}
}

// A read that began before goes on in the file of the image, and the snapshot ends when it has ended.
func TestLiveSnapshotAwaitsReads(t *testing.T) {
	p := newWrittenChain(t, 2)
	l := openLive(t, p[1], Options{})
	l.write(0x42, 0, 4*ondisk.MiB)
	epoch := l.im.BeginRead()
	extents, err := l.im.Resolve(nil, 0, l.im.Size())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := l.im.Snapshot(context.Background(), "", SnapshotOptions{})
		ended <- err
	}()
	for l.im.Path() == p[1] && len(ended) == 0 {
		time.Sleep(time.Millisecond)
	}
	l.check("a read that began later")
	for range 20 {
		for _, e := range extents {
			got := make([]byte, e.Len)
			if err := e.Read(got); err != nil || !bytes.Equal(got, l.want[e.DiskOff:e.End()]) {
				t.Fatalf("a read that began before: %v", err)
			}
		}
		time.Sleep(time.Millisecond)
	}
	if len(ended) > 0 {
		t.Error("it has not waited")
	}
	l.im.EndRead(epoch)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	l.write(0x43, ondisk.MiB, ondisk.MiB)
	l.check("afterwards")
}

// While many write, read, seek, trim and sync, snapshots are made. No goroutine gets an error, or reads anything
// else than it has written last. Each frozen image holds of every writer all that it had written at one moment, and nothing
// else.
func TestLiveSnapshotUnderLoad(t *testing.T) {
	const (
		workers = 4
		area    = 3 << 20 // bytes of the disk for each: a MiB for numbers, one that is written, and one that is trimmed
		cell    = 4 << 10
		cells   = ondisk.MiB / cell
	)
	image := filepath.Join(t.TempDir(), "disk.vhdx")
	if err := Create(image, CreateOptions{Size: workers * area, BlockSize: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	l := openLive(t, image, Options{Commit: 1, IdleClean: 1})
	cellOf := func(worker, round int) (off int64) { return int64(worker*area + ondisk.MiB + round%cells*cell) }
	content := func(worker, round int) []byte {
		return bytes.Repeat(fmt.Appendf(nil, "%3d %11d\n", worker, round), cell/16)
	}
	// In a round a worker writes a cell, and then the number of the round into its first one.
	var stop atomic.Bool
	var written [workers]atomic.Int64
	work := func(worker, round int) error {
		p, got := content(worker, round), make([]byte, cell)
		begin := int64(worker * area)
		if _, err := l.im.WriteAt(p, cellOf(worker, round)); err != nil {
			return err
		}
		if _, err := l.im.ReadAt(got, cellOf(worker, round)); err != nil || !bytes.Equal(got, p) {
			return fmt.Errorf("read %q, %w", got[:16], err)
		}
		if _, err := l.im.WriteAt(p, begin); err != nil {
			return err
		}
		written[worker].Store(int64(round))
		var err error
		switch round % 8 {
		case 1:
			_, err = l.im.WriteAt(p, begin+2*ondisk.MiB+int64(round)%ondisk.MiB)
		case 3:
			err = l.im.Zero(begin+2*ondisk.MiB, ondisk.MiB)
		case 5:
			_, err = l.im.SeekHole(begin)
		case 7:
			err = l.im.Sync()
		}
		return err
	}
	var running sync.WaitGroup
	for worker := range workers {
		running.Go(func() {
			for round := 1; !stop.Load(); round++ {
				if err := work(worker, round); err != nil {
					t.Errorf("round %d of worker %d: %v", round, worker, err)
					return
				}
			}
		})
	}
	type bounds struct{ from, to int64 }
	frozen := map[string][workers]bounds{}
	for i := range 12 {
		var b [workers]bounds
		for w := range workers {
			b[w].from = written[w].Load()
		}
		r, err := l.im.Snapshot(context.Background(), "", SnapshotOptions{KeepName: i%3 > 0})
		if err != nil {
			t.Fatal(err)
		}
		for w := range workers {
			b[w].to = written[w].Load() + 1
		}
		frozen[r.Frozen] = b
		l.im.Info()
		l.im.Stats()
	}
	stop.Store(true)
	running.Wait()
	last := l.im.Path()
	if err := l.im.Close(); err != nil {
		t.Fatal(err)
	}
	var final [workers]bounds
	for w := range workers {
		final[w] = bounds{written[w].Load(), written[w].Load()}
	}
	frozen[last] = final
	for path, b := range frozen {
		im, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, cell)
		for w := range workers {
			var id, round int
			if _, err := im.ReadAt(got, int64(w*area)); err != nil {
				t.Fatal(err)
			}
			if b[w].to > 1 && got[0] != 0 {
				if _, err := fmt.Sscanf(string(got[:16]), "%d %d", &id, &round); err != nil || id != w {
					t.Errorf("%s: worker %d: %q, %v", path, w, got[:16], err)
				}
			}
			if n := int64(round); n < b[w].from || n > b[w].to {
				t.Errorf("%s: worker %d was in round %d, not %d to %d", path, w, n, b[w].from, b[w].to)
			}
			for n := max(1, round-cells+2); n <= round; n++ { // the next cell may be written already
				if _, err := im.ReadAt(got, cellOf(w, n)); err != nil || !bytes.Equal(got, content(w, n)) {
					t.Errorf("%s: worker %d: round %d is %q, %v", path, w, n, got[:16], err)
				}
			}
		}
		if in := im.Info(); in.Log.State != LogClean {
			t.Errorf("%s: the log is %s", path, in.Log.State)
		}
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
		sound(t, path)
	}
}
