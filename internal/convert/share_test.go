package convert

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// A sharingTarget copies where the host of another one would share.
type sharingTarget struct{ Target }

func (t sharingTarget) Shares(mode Reflink) imagefile.File {
	return sharingFile{t.Target.Shares(mode)}
}

type sharingFile struct{ imagefile.File }

func (f sharingFile) Clone(off int64, src imagefile.File, srcOff, n int64) error {
	if (off|srcOff|n)%4096 != 0 {
		return unix.EINVAL
	}
	b := make([]byte, n)
	if _, err := src.ReadAt(b, srcOff); err != nil {
		return err
	}
	_, err := f.WriteAt(b, off)
	return err
}

// Sectors of a child that are zero, and a hole of its file, may end in the middle of what can be shared. What lies behind them in
// the parent is copied, and the copy verified, as ever.
func TestShareBehindHoleOfSectors(t *testing.T) {
	dir := t.TempDir()
	raw := make([]byte, 8*mib)
	rng := rand.New(rand.NewPCG(5, 5))
	for i := range raw {
		raw[i] = byte(1 + rng.IntN(255))
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("raw"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	base, err := NewImage(t.Context(), at("base.vhdx"), vhdx.CreateOptions{Size: int64(len(raw)), BlockSize: mib})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), Input{Disk: open(t, at("raw"))}, base, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := vhdx.Create(at("child.vhdx"), vhdx.CreateOptions{Parent: at("base.vhdx")}); err != nil {
		t.Fatal(err)
	}
	child, err := vhdx.Open(at("child.vhdx"), vhdx.Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	var holes []int64 // file offsets
	for _, off := range []int64{2 * mib, 4*mib + 4096} {
		clear(raw[off:][:11*512])
		if _, err := child.WriteAt(make([]byte, 11*512), off); err != nil {
			t.Fatal(err)
		}
		e, err := child.Extent(off)
		if err != nil {
			t.Fatal(err)
		}
		holes = append(holes, e.FileOff/4096*4096)
	}
	if _, err := child.WriteAt(raw[7*mib:][:4096], 7*mib); err != nil { // data behind the holes of the file
		t.Fatal(err)
	}
	if err := child.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := imagefile.Open(at("child.vhdx"), os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range holes {
		if err := f.PunchHole(off, 3*4096); err != nil { // with sectors that are the parent's
			t.Skipf("the file system has no holes: %v", err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []Reflink{ReflinkAuto, ReflinkAlways} {
		for _, kind := range []string{"raw", "image"} {
			out := at("out " + kind + string(mode))
			var target Target
			if kind == "raw" {
				target, err = NewRaw(out, int64(len(raw)), newfile.Options{})
			} else {
				target, err = NewImage(t.Context(), out, vhdx.CreateOptions{Size: int64(len(raw)), BlockSize: mib})
			}
			if err != nil {
				t.Fatal(err)
			}
			d := open(t, at("child.vhdx"))
			got := make([]byte, len(raw))
			if _, err := d.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, raw) {
				t.Fatalf("the child holds something else (%v)", err)
			}
			if r, err := Run(t.Context(), Input{Disk: d}, sharingTarget{target}, Options{Verify: true, Reflink: mode}); err != nil || r.Shared == 0 {
				t.Errorf("%s, %s: %+v, %v", kind, mode, r, err)
				continue
			}
			reads(t, out, raw)
		}
	}
}
