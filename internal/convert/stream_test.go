package convert

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// A buffer is an Output in memory, which fails when limit bytes were written, unless that is 0.
type buffer struct {
	bytes.Buffer
	limit  int
	synced bool
}

var errFull = errors.New("full")

func (b *buffer) Write(p []byte) (int, error) {
	if b.limit > 0 && b.Len()+len(p) > b.limit {
		return 0, errFull
	}
	return b.Buffer.Write(p)
}

func (b *buffer) Sync() error { b.synced = true; return nil }

// imageStream copies the disk at path to an image in a stream.
func imageStream(t *testing.T, path string, o vhdx.CreateOptions) []byte {
	t.Helper()
	var b buffer
	d := open(t, path)
	o.Size = d.Size()
	target, err := NewImageStream(t.Context(), &b, d, o, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), Input{Disk: d}, target, Options{Workers: 5}); err != nil || !b.synced {
		t.Fatal(err, b.synced)
	}
	return b.Bytes()
}

func TestRawStream(t *testing.T) {
	for _, tail := range []int{0, 100} {
		want, path := rawDisk(t, tail)
		var b buffer
		if _, err := Run(t.Context(), Input{Disk: open(t, path)}, NewRawStream(&b, int64(len(want))), Options{Workers: 5}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Bytes(), want) {
			t.Errorf("%d bytes, others than the %d of the disk", b.Len(), len(want))
		}
	}
}

// The image that goes through a pipe holds the disk, no more blocks than it has to, in the order of the disk, and can be
// read while it arrives.
func TestImageStream(t *testing.T) {
	for _, o := range []vhdx.CreateOptions{
		{BlockSize: mib}, {BlockSize: 2 * mib, LogicalSectorSize: 4096}, {BlockSize: 4 * mib, ZeroBlocks: true}, {Type: vhdx.Fixed}, {LogSize: 3 * mib},
	} {
		want, path := rawDisk(t, 4096)
		b := imageStream(t, path, o)
		file := filepath.Join(t.TempDir(), "whole.vhdx")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		reads(t, file, want)
		d := open(t, file)
		last := int64(0)
		for off := int64(0); off < d.Size(); {
			e, err := d.Image.Extent(off)
			if err != nil {
				t.Fatal(err)
			}
			if e.File != nil && e.FileOff < last {
				t.Errorf("byte %d of the disk is before others", e.DiskOff)
			}
			last, off = max(last, e.FileOff), e.End()
		}
		if n := d.Image.Info().Blocks.FullyPresent; o.BlockSize == mib && n != 6 { // 0, 1, 3, 5, 6, 9
			t.Errorf("%d blocks are present", n)
		}
		if r, err := vhdx.Check(file, vhdx.Options{}); err != nil || len(r.Errors)+len(r.Warnings) > 0 {
			t.Errorf("%+v: %+v, %v", o, r, err)
		}
		for name, target := range map[string]func(string) (Target, error){
			"raw":   func(p string) (Target, error) { return NewRaw(p, d.Size(), newfile.Options{}) },
			"image": func(p string) (Target, error) { return imageTarget(vhdx.CreateOptions{})(p, d.Size()) },
		} {
			out := filepath.Join(t.TempDir(), name)
			tt, err := target(out)
			if err != nil {
				t.Fatal(err)
			}
			front, _, err := disk.ReadFront("stream", io.MultiReader(bytes.NewReader(b[:5*mib]), bytes.NewReader(b[5*mib:]), strings.NewReader("behind")))
			if err != nil || front == nil {
				t.Fatalf("the stream cannot be read in one pass: %v", err)
			}
			r, err := Run(t.Context(), Input{Front: front}, tt, Options{Workers: 3, Verify: true})
			if err != nil || !r.Verified {
				t.Fatal(err)
			}
			reads(t, out, want)
		}
	}
}

// Wherever the stream is cut, nothing is made of it.
func TestCutStream(t *testing.T) {
	_, path := rawDisk(t, 0)
	b := imageStream(t, path, vhdx.CreateOptions{BlockSize: mib})
	for _, n := range []int{len(b) - 1, len(b) - 4096, len(b) - mib, len(b) - mib - 1, 5*mib + 1, 4 * mib, 4*mib - 1} {
		front, _, err := disk.ReadFront("stream", bytes.NewReader(b[:n]))
		if err != nil || front == nil {
			t.Fatal(n, err)
		}
		out := filepath.Join(t.TempDir(), "out.raw")
		target, err := NewRaw(out, front.Image.Size(), newfile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Run(t.Context(), Input{Front: front}, target, Options{}); err == nil || !strings.Contains(err.Error(), "cut off") {
			t.Errorf("cut at %d: %v", n, err)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("cut at %d: there is an output", n)
		}
	}
	for _, n := range []int{3 * mib, mib, 300 << 10, 9, 0} { // what tells where the disk is, is not all there
		if front, _, err := disk.ReadFront("stream", bytes.NewReader(b[:n])); front != nil || err != nil {
			t.Errorf("cut at %d: %v, %v", n, front, err)
		}
	}
}

// A block that has data only when it is copied is an error, and not left out.
func TestImageStreamOfAChangingDisk(t *testing.T) {
	want, path := rawDisk(t, 0)
	d := open(t, path)
	var b buffer
	target, err := NewImageStream(t.Context(), &b, d, vhdx.CreateOptions{Size: d.Size(), BlockSize: mib}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if want[4*mib] != 0 {
		t.Fatal("that was data before")
	}
	if _, err := f.WriteAt([]byte("new"), 4*mib); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), Input{Disk: d}, target, Options{}); !errors.Is(err, vhdx.ErrNotHeld) {
		t.Errorf("error %v, want %v", err, vhdx.ErrNotHeld)
	}
}

func TestStreamEnds(t *testing.T) {
	_, path := rawDisk(t, 0)
	d := open(t, path)
	for _, limit := range []int{1, mib, 6 * mib} {
		b := buffer{limit: limit}
		if _, err := Run(t.Context(), Input{Disk: d}, NewRawStream(&b, d.Size()), Options{}); !errors.Is(err, errFull) {
			t.Errorf("limit %d: %v", limit, err)
		}
		b = buffer{limit: limit}
		target, err := NewImageStream(context.Background(), &b, d, vhdx.CreateOptions{Size: d.Size()}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Run(t.Context(), Input{Disk: d}, target, Options{}); !errors.Is(err, errFull) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
	if _, err := Run(t.Context(), Input{Disk: d}, NewRawStream(&buffer{}, d.Size()), Options{Reflink: ReflinkAlways}); !errors.Is(err, ErrReflink) {
		t.Errorf("error %v, want %v", err, ErrReflink)
	}
}
