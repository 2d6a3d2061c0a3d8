package delta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/internal/convert"
	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

const mib = 1 << 20

// image makes an image of the bytes.
func image(t *testing.T, path string, p []byte, o vhdx.CreateOptions) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, p, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Size = int64(len(p))
	target, err := convert.NewImage(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, raw)
	if _, err := convert.Run(t.Context(), convert.Input{Disk: d}, target, convert.Options{}); err != nil {
		t.Fatal(err)
	}
	return path
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

// someDisk returns bytes with data in places.
func someDisk(size int, seed uint64) []byte {
	p := make([]byte, size)
	change(p, seed)
	return p
}

// change changes some of the bytes: data in places, zeros in others, whole MiB and single bytes.
func change(p []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 9))
	for i := range 12 {
		n := min(len(p), []int{1, 300, 5000, mib, 3 * mib}[rng.IntN(5)])
		off := rng.IntN(len(p) - n + 1)
		if rng.IntN(3) == 0 {
			off = off / mib * mib
		}
		for j := range p[off : off+n] {
			p[off+j] = byte(rng.Uint32()) & byte(-(i%3+1)/2) // a third are zeros
		}
	}
}

// copyOf copies a file and returns the path of the copy.
func copyOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "copy.vhdx")
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

// deltaOf returns the bytes of the delta from the disk at a to the one at b.
func deltaOf(t *testing.T, a, b string) ([]byte, *Result) {
	t.Helper()
	var out bytes.Buffer
	first, second := open(t, a), open(t, b)
	r, err := Write(t.Context(), &out, first, second, Options{})
	if err := errors.Join(err, first.Close(), second.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), r
}

var silent = ApplyOptions{Name: "the delta", Phase: func(string, int64) {}, Progress: func(int64) {}}

func apply(t *testing.T, delta []byte, base string) (*Applied, error) {
	t.Helper()
	return Apply(t.Context(), bytes.NewReader(delta), nil, base, silent)
}

// shows fails the test unless the disk at path holds exactly want, and the image is clean.
func shows(t *testing.T, path string, want []byte) {
	t.Helper()
	d := open(t, path)
	got := make([]byte, d.Size())
	if _, err := d.ReadAt(got, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s shows %d bytes, others than the %d that it should", path, len(got), len(want))
	}
	r, err := vhdx.Check(path, vhdx.Options{})
	if err != nil || !r.Sound() {
		t.Fatalf("%+v, %v", r, err)
	}
}

func idOf(t *testing.T, path string) uuid.UUID {
	t.Helper()
	d := open(t, path)
	defer d.Close()
	return d.Image.DataWriteGUID()
}

// A copy of the first disk becomes the second one, and then the third, whatever their sizes, sectors and blocks are.
func TestDelta(t *testing.T) {
	for i, tc := range []struct {
		first, second, third int // sizes in bytes
		o                    vhdx.CreateOptions
	}{
		{20 * mib, 20 * mib, 20 * mib, vhdx.CreateOptions{}},
		{20*mib + 512, 20*mib + 512, 20*mib + 512, vhdx.CreateOptions{BlockSize: 4 * mib}},
		{20 * mib, 33*mib + 1024, 25 * mib, vhdx.CreateOptions{BlockSize: 2 * mib}},
		{20 * mib, 7*mib + 512, 60 * mib, vhdx.CreateOptions{Type: vhdx.Fixed}},
		{20 * mib, 22*mib + 8192, 21*mib + 4096, vhdx.CreateOptions{LogicalSectorSize: 4096}},
	} {
		if testing.Short() && i%3 > 0 {
			continue
		}
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			dir := t.TempDir()
			states := [][]byte{someDisk(tc.first, uint64(i))}
			for j, size := range []int{tc.second, tc.third} {
				p := append(bytes.Clone(states[j]), make([]byte, max(0, size-len(states[j])))...)[:size]
				change(p, uint64(10*i+j))
				states = append(states, p)
			}
			var paths []string
			for j, p := range states {
				paths = append(paths, image(t, filepath.Join(dir, fmt.Sprint(j, ".vhdx")), p, tc.o))
			}
			base := copyOf(t, paths[0])
			for j := 1; j < len(states); j++ {
				b, r := deltaOf(t, paths[j-1], paths[j])
				if r.ID != idOf(t, paths[j]) || r.Linkage != idOf(t, base) {
					t.Errorf("%+v", r)
				}
				// As an image of its own it shows the same disk.
				child := filepath.Join(dir, "child.avhdx")
				if err := os.WriteFile(child, b, 0o600); err != nil {
					t.Fatal(err)
				}
				if r.Size >= int64(len(states[j-1])) {
					shows(t, child, states[j])
				}
				a, err := apply(t, b, base)
				if err != nil || a.Already || a.ID != r.ID {
					t.Fatalf("%+v, %v", a, err)
				}
				shows(t, base, states[j])
				if got := idOf(t, base); got != r.ID {
					t.Errorf("the base has the identity %v, not %v", got, r.ID)
				}
				if a, err := apply(t, b, base); err != nil || !a.Already {
					t.Errorf("a second time: %+v, %v", a, err)
				}
				nothingLeft(t, base)
			}
		})
	}
}

func nothingLeft(t *testing.T, base string) {
	t.Helper()
	if list, err := os.ReadDir(filepath.Dir(base)); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

// A raw disk can be the second one, but not the first.
func TestDeltaOfRaw(t *testing.T) {
	dir := t.TempDir()
	p := someDisk(9*mib, 1)
	a := image(t, filepath.Join(dir, "a.vhdx"), p, vhdx.CreateOptions{})
	base := copyOf(t, a)
	change(p, 2)
	p = p[:9*mib-100] // in the middle of a sector
	raw := filepath.Join(dir, "b.raw")
	if err := os.WriteFile(raw, p, 0o600); err != nil {
		t.Fatal(err)
	}
	b, _ := deltaOf(t, a, raw)
	if _, err := apply(t, b, base); err != nil {
		t.Fatal(err)
	}
	shows(t, base, append(p, make([]byte, 100)...))
	if _, err := Write(t.Context(), io.Discard, open(t, raw), open(t, a), Options{}); err == nil {
		t.Error("a delta of a raw disk")
	}
}

// What is cut off, damaged, no delta, or one of another disk, changes no byte of the base.
func TestBadDeltas(t *testing.T) {
	dir := t.TempDir()
	p := someDisk(9*mib, 1)
	a := image(t, filepath.Join(dir, "a.vhdx"), p, vhdx.CreateOptions{BlockSize: mib})
	base := copyOf(t, a)
	change(p, 2)
	b := image(t, filepath.Join(dir, "b.vhdx"), p, vhdx.CreateOptions{BlockSize: mib})
	delta, _ := deltaOf(t, a, b)
	before, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(name string, bad []byte, want error) {
		t.Helper()
		_, err := apply(t, bad, base)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "/proc/") {
			t.Errorf("%s: %v", name, err)
		}
		after, err := os.ReadFile(base)
		if err != nil || !bytes.Equal(before, after) {
			t.Fatalf("%s: the base was changed, %v", name, err)
		}
		nothingLeft(t, base)
	}
	for n := 0; n < len(delta); n += 700_001 {
		refuse(fmt.Sprintf("cut at %d", n), delta[:n], nil)
	}
	refuse("without its last byte", delta[:len(delta)-1], nil)
	rng := rand.New(rand.NewPCG(3, 4))
	payload := 0
	for payload < 8 {
		at := 4*mib + rng.IntN(len(delta)-4*mib)
		if delta[at] == 0 { // it may belong to no sector that the delta holds
			continue
		}
		payload++
		bad := bytes.Clone(delta)
		bad[at] ^= 0x10
		refuse(fmt.Sprintf("another byte at %d", at), bad, ErrDamaged)
	}
	whole, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	refuse("an image", whole, ErrNoDelta)
	refuse("noise", bytes.Repeat([]byte("noise"), 1<<20), nil)
	refuse("nothing", nil, nil)
	c := image(t, filepath.Join(dir, "c.vhdx"), p, vhdx.CreateOptions{})
	other, _ := deltaOf(t, c, b)
	var wrong *OtherBaseError
	if _, err := apply(t, other, base); !errors.As(err, &wrong) {
		t.Errorf("a delta of another disk: %v", err)
	}
	nothingLeft(t, base)
	// A child is no delta.
	child := filepath.Join(dir, "child.avhdx")
	if err := vhdx.Create(child, vhdx.CreateOptions{Parent: a}); err != nil {
		t.Fatal(err)
	}
	if whole, err = os.ReadFile(child); err != nil {
		t.Fatal(err)
	}
	refuse("a child", whole, ErrNoDelta)
}

// Where it is interrupted while the base changes, the rest can be done later.
func TestInterruptedApply(t *testing.T) {
	dir := t.TempDir()
	p := someDisk(30*mib, 1)
	a := image(t, filepath.Join(dir, "a.vhdx"), p, vhdx.CreateOptions{})
	for i := range 10 * mib {
		p[10*mib+i] = byte(i*7 + 1)
	}
	b := image(t, filepath.Join(dir, "b.vhdx"), p, vhdx.CreateOptions{})
	delta, r := deltaOf(t, a, b)
	for cut := range 3 {
		base := copyOf(t, a)
		ctx, cancel := context.WithCancelCause(t.Context())
		merging, pieces := false, 0
		o := ApplyOptions{
			Phase: func(name string, _ int64) { merging = strings.HasPrefix(name, "merge") },
			Progress: func(int64) {
				if merging {
					if pieces++; pieces == cut+1 {
						cancel(errors.New("stop"))
					}
				}
			},
		}
		if _, err := Apply(ctx, bytes.NewReader(delta), nil, base, o); err == nil || !strings.Contains(err.Error(), "finish with") {
			t.Fatalf("cut %d: %v", cut, err)
		}
		if _, err := apply(t, delta, base); err == nil || !strings.Contains(err.Error(), "is left from an interrupted") {
			t.Errorf("cut %d: %v", cut, err)
		}
		if left := Interrupted(base, vhdx.Options{}); left != base+ApplySuffix {
			t.Errorf("cut %d: interrupted is %q", cut, left)
		}
		refusing := silent
		refusing.Check = func() error { return errors.New("no") }
		if _, err := Finish(t.Context(), base, refusing); err == nil || Interrupted(base, vhdx.Options{}) == "" {
			t.Errorf("cut %d: refused with %v, and what the base needs is gone", cut, err)
		}
		if cut == 2 { // and then written to
			if _, err := vhdx.Open(base, vhdx.Options{Writable: true}); !errors.Is(err, vhdx.ErrMixed) {
				t.Errorf("opened for writing: %v", err)
			}
			im, err := vhdx.Open(base, vhdx.Options{Writable: true, Mixed: true})
			if err != nil {
				t.Fatal(err)
			}
			_, err = im.WriteAt([]byte{1}, 0)
			if err := errors.Join(err, im.Close()); err != nil {
				t.Fatal(err)
			}
			if _, err := Finish(t.Context(), base, silent); err == nil || !strings.Contains(err.Error(), "may be a mix of two disks") {
				t.Errorf("written to: %v", err)
			}
			continue
		}
		if a, err := Finish(t.Context(), base, silent); err != nil || a.Already || a.ID != r.ID {
			t.Fatalf("cut %d: %+v, %v", cut, a, err)
		}
		shows(t, base, p)
		nothingLeft(t, base)
		if left := Interrupted(base, vhdx.Options{}); left != "" {
			t.Errorf("cut %d: finished, and interrupted is %q", cut, left)
		}
	}
	// A copy that is complete, of which nothing was written yet.
	base := copyOf(t, a)
	if err := os.WriteFile(base+ApplySuffix, delta, 0o600); err != nil {
		t.Fatal(err)
	}
	if left := Interrupted(base, vhdx.Options{}); left != "" {
		t.Errorf("not begun, and interrupted is %q", left)
	}
}

// Applying a delta file takes the time of what it holds, also where it ends with a hole of a TiB.
func TestApplySkipsHoles(t *testing.T) {
	dir := t.TempDir()
	p := someDisk(4*mib, 1)
	a := image(t, filepath.Join(dir, "a.vhdx"), p, vhdx.CreateOptions{})
	change(p, 2)
	delta, _ := deltaOf(t, a, image(t, filepath.Join(dir, "b.vhdx"), p, vhdx.CreateOptions{}))
	f, err := os.Create(filepath.Join(t.TempDir(), "delta"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if imagefile.Of(f).Host().FindsHoles != imagefile.Yes {
		t.Skip("holes are not found in the directory for temporary files")
	}
	if _, err := f.WriteAt(delta, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 40); err != nil {
		t.Skip("no large files here: ", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	var read int64
	o := silent
	o.Progress = func(n int64) {
		if read += n; read > 16*int64(len(delta)) {
			cancel(errors.New("the hole is read"))
		}
	}
	base := copyOf(t, a)
	if _, err := Apply(ctx, f, nil, base, o); err != nil {
		t.Fatal(err)
	}
	shows(t, base, p)
	nothingLeft(t, base)
}

// A base that comes into use while the delta is verified stays as it is, and no copy is left that would have to be finished.
func TestApplyToBaseInUse(t *testing.T) {
	dir := t.TempDir()
	p := someDisk(4*mib, 1)
	a := image(t, filepath.Join(dir, "a.vhdx"), p, vhdx.CreateOptions{})
	changed := bytes.Clone(p)
	change(changed, 2)
	delta, _ := deltaOf(t, a, image(t, filepath.Join(dir, "b.vhdx"), changed, vhdx.CreateOptions{}))
	base := copyOf(t, a)
	var user *disk.Disk
	o := silent
	o.Phase = func(name string, _ int64) {
		if name == "verify" {
			user = open(t, base)
		}
	}
	if _, err := Apply(t.Context(), bytes.NewReader(delta), nil, base, o); !errors.Is(err, vhdx.ErrLocked) {
		t.Errorf("%v, want that it is in use", err)
	}
	if err := user.Close(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, base)
	shows(t, base, p)
}

// The digest is that of what is held, however it is cut into pieces.
func TestDigest(t *testing.T) {
	const size = 5*mib + 1024
	p := someDisk(size, 4)
	clear(p[2*mib : 3*mib])
	sum := func(add func(d *digest)) [vhdx.DigestSize]byte {
		d := newDigest(size, uuid.UUID{1})
		add(d)
		return d.sum()
	}
	want := sum(func(d *digest) { d.data(512, p[512:4*mib]); d.data(5*mib, p[5*mib:]) })
	for name, got := range map[string][vhdx.DigestSize]byte{
		"pieces": sum(func(d *digest) {
			for off := 512; off < 4*mib; off += 512 {
				d.data(int64(off), p[off:off+512])
			}
			d.data(5*mib, p[5*mib:5*mib+512])
			d.data(5*mib+512, p[5*mib+512:])
		}),
		"zeros": sum(func(d *digest) {
			d.data(512, p[512:2*mib])
			d.zero(2*mib, mib)
			d.data(3*mib, p[3*mib:4*mib])
			d.data(5*mib, p[5*mib:])
		}),
	} {
		if got != want {
			t.Errorf("%s: another digest", name)
		}
	}
	for name, got := range map[string][vhdx.DigestSize]byte{
		"less":    sum(func(d *digest) { d.data(1024, p[1024:4*mib]); d.data(5*mib, p[5*mib:]) }),
		"nothing": sum(func(*digest) {}),
		"zeros for more": sum(func(d *digest) {
			d.data(512, p[512:4*mib])
			d.zero(4*mib, mib)
			d.data(5*mib, p[5*mib:])
		}),
	} {
		if got == want {
			t.Errorf("%s: the same digest", name)
		}
	}
}
