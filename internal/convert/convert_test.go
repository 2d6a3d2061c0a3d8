package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

const mib = 1 << 20

// rawDisk writes a raw disk of 9 MiB and a bit, with data in places, and returns it and its path.
func rawDisk(t *testing.T, tail int) ([]byte, string) {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, uint64(tail)))
	p := make([]byte, 9*mib+tail)
	for _, r := range [][2]int{{0, 1}, {mib - 10, 20}, {3*mib + 40<<10, 5000}, {5 * mib, 2 * mib}, {len(p) - 1, 1}} {
		for i := range r[1] {
			p[r[0]+i] = byte(1 + rng.IntN(255))
		}
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return p, path
}

func open(t *testing.T, path string) *disk.Disk {
	t.Helper()
	d, err := disk.Open(path, disk.Auto, vhdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// reads fails the test unless the disk at path holds want, and zeros behind it.
func reads(t *testing.T, path string, want []byte) {
	t.Helper()
	d := open(t, path)
	got := make([]byte, d.Size())
	if n, err := d.ReadAt(got, 0); n != len(got) || err != nil && err != io.EOF {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	if len(got) < len(want) || !bytes.Equal(got[:len(want)], want) || strings.Trim(string(got[len(want):]), "\x00") != "" {
		t.Errorf("%s holds %d bytes, others than the %d that were to be copied", path, len(got), len(want))
	}
}

func TestRun(t *testing.T) {
	for _, tail := range []int{0, 512, 100, 4096} {
		for _, stream := range []bool{false, true} {
			for name, newTarget := range map[string]func(path string, size int64) (Target, error){
				"raw":     func(path string, size int64) (Target, error) { return NewRaw(path, size, newfile.Options{}) },
				"dynamic": imageTarget(vhdx.CreateOptions{BlockSize: 2 * mib}),
				"fixed":   imageTarget(vhdx.CreateOptions{Type: vhdx.Fixed, LogicalSectorSize: 4096}),
			} {
				t.Run(fmt.Sprintf("%s/%d/%t", name, tail, stream), func(t *testing.T) {
					want, path := rawDisk(t, tail)
					var in Input
					size := int64(len(want))
					if stream {
						in.Stream, size = io.MultiReader(bytes.NewReader(want[:777]), bytes.NewReader(want[777:])), 0
					} else {
						in.Disk = open(t, path)
					}
					out := filepath.Join(t.TempDir(), "out")
					target, err := newTarget(out, size)
					if err != nil {
						t.Fatal(err)
					}
					var total, done atomic.Int64
					r, err := Run(t.Context(), in, target, Options{
						Workers: 3, Verify: true,
						Phase:    func(_ string, n int64) { total.Add(max(0, n)) },
						Progress: func(n int64) { done.Add(n) },
					})
					if err != nil {
						t.Fatal(err)
					}
					reads(t, out, want)
					if d := open(t, out); r.InputSize != int64(len(want)) || r.DiskSize != d.Size() || !r.Verified {
						t.Errorf("%+v of %d bytes", r, len(want))
					}
					if !stream && total.Load() != done.Load() {
						t.Errorf("%d bytes were announced, %d done", total.Load(), done.Load())
					}
				})
			}
		}
	}
}

func imageTarget(o vhdx.CreateOptions) func(string, int64) (Target, error) {
	return func(path string, size int64) (Target, error) {
		o.Size, o.SizeLater = size, size == 0
		return NewImage(context.Background(), path, o)
	}
}

// What is zero takes no space, and the layout does not depend on which worker was first.
func TestRunIsSparseAndInOrder(t *testing.T) {
	want, path := rawDisk(t, 0)
	var before *vhdx.Info
	for range 3 {
		out := filepath.Join(t.TempDir(), "out.vhdx")
		target, err := NewImage(context.Background(), out, vhdx.CreateOptions{Size: int64(len(want)), BlockSize: mib})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Run(t.Context(), Input{Disk: open(t, path)}, target, Options{}); err != nil {
			t.Fatal(err)
		}
		im := open(t, out).Image
		if n := im.Info().Blocks.FullyPresent; n != 6 { // 0, 1, 3, 5, 6, 8
			t.Errorf("%d blocks are present", n)
		}
		last := int64(0)
		for off := int64(0); off < im.Size(); {
			e, err := im.Extent(off)
			if err != nil {
				t.Fatal(err)
			}
			if e.File != nil {
				if e.FileOff < last {
					t.Errorf("what is at %d of the disk is at %#x, before what precedes it", off, e.FileOff)
				}
				last = e.FileOff
			}
			off = e.End()
		}
		if before != nil && before.FileSize != im.Info().FileSize {
			t.Errorf("sizes differ: %d and %d", before.FileSize, im.Info().FileSize)
		}
		before = im.Info()
	}
}

// A spoiler is a target that writes a byte wrong, or fails at some point.
type spoiler struct {
	Target
	spoil bool
	fail  error
}

func (s spoiler) WriteAt(p []byte, off int64) (int, error) {
	if s.fail != nil && off > 4*mib {
		return 0, s.fail
	}
	if s.spoil && off > 4*mib {
		p = bytes.Clone(p)
		p[0] ^= 1
	}
	return s.Target.WriteAt(p, off)
}

func TestFailuresLeaveNothing(t *testing.T) {
	want, path := rawDisk(t, 0)
	full := errors.New("no space")
	for name, tc := range map[string]struct {
		spoil   spoiler
		reflink Reflink
		in      func(ctx context.Context, cancel func(error)) Input
		want    error
	}{
		"verify": {spoil: spoiler{spoil: true}, want: ErrVerify},
		"write":  {spoil: spoiler{fail: full}, want: full},
		"read":   {in: func(context.Context, func(error)) Input { return Input{Stream: failing(want, full)} }, want: full},
		"share a stream": {reflink: ReflinkAlways, in: func(context.Context, func(error)) Input {
			return Input{Stream: bytes.NewReader(want)}
		}, want: ErrReflink},
		"cancel": {in: func(_ context.Context, cancel func(error)) Input {
			return Input{Stream: cancelling(want, cancel, full, false)}
		}, want: full},
		"cancel, no end": {in: func(_ context.Context, cancel func(error)) Input {
			return Input{Stream: cancelling(want, cancel, full, true)}
		}, want: full},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, kind := range []string{"raw", "image"} {
				var target Target
				var err error
				if kind == "raw" {
					target, err = NewRaw(filepath.Join(dir, "out"), int64(len(want)), newfile.Options{})
				} else {
					target, err = NewImage(context.Background(), filepath.Join(dir, "out"), vhdx.CreateOptions{Size: int64(len(want)), BlockSize: mib})
				}
				if err != nil {
					t.Fatal(err)
				}
				spoil := tc.spoil
				spoil.Target = target
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				in := Input{Disk: open(t, path)}
				if tc.in != nil {
					in = tc.in(ctx, cancel)
				}
				if r, err := Run(ctx, in, spoil, Options{Verify: true, Reflink: tc.reflink}); !errors.Is(err, tc.want) {
					t.Errorf("%s: %+v, %v; want %v", kind, r, err, tc.want)
				}
				if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
					t.Errorf("%s: %v is left, %v", kind, left, err)
				}
			}
		})
	}
}

// failing gives half of p, then an error.
func failing(p []byte, err error) io.Reader {
	return io.MultiReader(bytes.NewReader(p[:len(p)/2]), readerFunc(func([]byte) (int, error) { return 0, err }))
}

// cancelling ends a context in the middle of p. With hang, it then never returns anything.
func cancelling(p []byte, cancel func(error), cause error, hang bool) io.Reader {
	return io.MultiReader(bytes.NewReader(p[:len(p)/2]), readerFunc(func([]byte) (int, error) {
		cancel(cause)
		if hang {
			select {}
		}
		return 0, io.EOF
	}), bytes.NewReader(p[len(p)/2:]))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestExistingTargetStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "there")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewRaw(path, mib, newfile.Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("raw: %v", err)
	}
	if _, err := NewImage(context.Background(), path, vhdx.CreateOptions{Size: mib}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("image: %v", err)
	}
	want, from := rawDisk(t, 0)
	target, err := NewRaw(path, int64(len(want)), newfile.Options{Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); string(b) != "old" {
		t.Errorf("before the end it holds %q, %v", b, err)
	}
	if _, err := Run(t.Context(), Input{Disk: open(t, from)}, target, Options{}); err != nil {
		t.Fatal(err)
	}
	reads(t, path, want)
}

// A damaged disk is copied as far as it can be read.
func TestSkipErrors(t *testing.T) {
	want, path := rawDisk(t, 0)
	image := filepath.Join(t.TempDir(), "image.vhdx")
	target, err := NewImage(context.Background(), image, vhdx.CreateOptions{Size: int64(len(want)), BlockSize: mib})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), Input{Disk: open(t, path)}, target, Options{}); err != nil {
		t.Fatal(err)
	}
	d := open(t, image)
	size := d.Image.Info().FileSize
	if err := os.Truncate(image, size-mib/2); err != nil { // the second half of the last block that is present
		t.Fatal(err)
	}
	for _, skip := range []bool{false, true} {
		out := filepath.Join(t.TempDir(), "out")
		raw, err := NewRaw(out, d.Size(), newfile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := Run(t.Context(), Input{Disk: d}, raw, Options{SkipErrors: skip})
		if !skip {
			if err == nil {
				t.Error("no error")
			}
			continue
		}
		if err != nil || len(r.Skipped) != 1 || r.Skipped[0].Length != mib/2 || r.Skipped[0].Offset != 8*mib+mib/2 {
			t.Fatalf("%+v, %v", r, err)
		}
		clear(want[8*mib+mib/2:])
		reads(t, out, want)
	}
}

// A hole is one range of what was skipped, in any order in which workers find its pieces.
func TestSkippedRangesJoin(t *testing.T) {
	const unit = 4 << 10
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		c := &copier{result: &Result{}}
		want := []Skipped{{Offset: unit, Length: 40 * unit}, {Offset: 50 * unit, Length: unit}, {Offset: 60 * unit, Length: 7 * unit}}
		var pieces []int64
		for _, r := range want {
			for off := r.Offset; off < r.Offset+r.Length; off += unit {
				pieces = append(pieces, off)
			}
		}
		rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		for _, off := range pieces {
			c.skip(off, unit, fmt.Errorf("at %d", off))
		}
		for i, got := range c.result.Skipped {
			if len(c.result.Skipped) != len(want) || got.Offset != want[i].Offset || got.Length != want[i].Length || got.Error != fmt.Sprintf("at %d", got.Offset) {
				t.Fatalf("skipped %+v, want %+v", c.result.Skipped, want)
			}
		}
	}
}
