package vhdx

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
	"github.com/vhdxfs/vhdxfs/vhdx/undofile"
)

// damagedForUndo is an image whose repair changes all that a repair can: pages, the size, and, without the lost block,
// space that nothing uses.
func damagedForUndo(shrinks bool) *image {
	im := build(spec{dataOff: 7 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}}})
	im.write(im.random(3*ondisk.PageSize), 5*ondisk.MiB+17)
	if shrinks {
		im.setBlockEntry(2, ondisk.NewBATEntry(ondisk.Zero, ondisk.MiB))
		im.write(im.random(777), im.size+ondisk.MiB)
	} else {
		im.setBlockEntry(2, im.entries[0])
		im.write([]byte{1}, ondisk.HeaderOffsets[1]+9)
	}
	return im
}

func TestUndoRefusesWhatWasChanged(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, path string)
	}{
		{"written", func(t *testing.T, path string) {
			im, err := Open(path, Options{Writable: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := im.WriteAt([]byte("new"), 100); err != nil {
				t.Fatal(err)
			}
			if err := im.Close(); err != nil {
				t.Fatal(err)
			}
		}},
		{"longer", func(t *testing.T, path string) { truncate(t, path, 40*ondisk.MiB) }},
		{"shorter", func(t *testing.T, path string) { truncate(t, path, 2*ondisk.MiB) }},
		{"another image", func(t *testing.T, path string) { build(spec{}).writeTo(t, path) }},
		{"a repaired sector", func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte{9}, ondisk.HeaderOffsets[0]+4000); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		for _, shrinks := range []bool{false, true} {
			im := damagedForUndo(shrinks)
			path := chain{im}.writeTo(t, t.TempDir())
			r := mustRepair(t, path, RepairOptions{FreeLeaks: true})
			tc.change(t, path)
			now, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Undo(t.Context(), r.UndoFile, UndoOptions{}); !errors.Is(err, ErrChanged) {
				t.Errorf("%s: Undo: %v, want ErrChanged", tc.name, err)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(now, after) {
				t.Errorf("%s: the refused undo changed the image, %v", tc.name, err)
			}
			u, err := Undo(t.Context(), r.UndoFile, UndoOptions{Force: true})
			if err != nil || u.Restored == 0 {
				t.Errorf("%s: with Force: %+v, %v", tc.name, u, err)
			}
			if tc.name == "a repaired sector" && !im.sameAs(t, path) {
				t.Errorf("%s: with Force it is not what it was", tc.name)
			}
		}
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// Undo can be run again, finds the image beside the undo file when both have moved, and takes one that is named.
func TestUndoAgainAndElsewhere(t *testing.T) {
	im := damagedForUndo(false)
	path := chain{im}.writeTo(t, t.TempDir())
	r := mustRepair(t, path, RepairOptions{FreeLeaks: true})
	dir := t.TempDir()
	moved, undoFile := filepath.Join(dir, "image.vhdx"), filepath.Join(dir, "some.undo")
	for from, to := range map[string]string{path: moved, r.UndoFile: undoFile} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	if u, err := Undo(t.Context(), undoFile, UndoOptions{}); err != nil || u.Path != moved || u.Restored == 0 || !im.sameAs(t, moved) {
		t.Fatalf("beside the image: %+v, %v", u, err)
	}
	if u, err := Undo(t.Context(), undoFile, UndoOptions{}); err != nil || u.Restored != 0 || !im.sameAs(t, moved) {
		t.Errorf("again: %+v, %v", u, err)
	}
	r = mustRepair(t, moved, RepairOptions{FreeLeaks: true, UndoFile: filepath.Join(t.TempDir(), "far away")})
	if _, err := Undo(t.Context(), r.UndoFile, UndoOptions{}); !errors.Is(err, ErrOptions) || im.sameAs(t, moved) {
		t.Errorf("from another directory, without a name: %v, want ErrOptions", err)
	}
	if u, err := Undo(t.Context(), r.UndoFile, UndoOptions{Image: moved}); err != nil || u.Path != moved || !im.sameAs(t, moved) {
		t.Errorf("from another directory: %+v, %v", u, err)
	}
	r = mustRepair(t, moved, RepairOptions{FreeLeaks: true})
	other := filepath.Join(dir, "other.vhdx")
	if err := os.Rename(moved, other); err != nil {
		t.Fatal(err)
	}
	if _, err := Undo(t.Context(), r.UndoFile, UndoOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an image with another name: %v", err)
	}
	if u, err := Undo(t.Context(), r.UndoFile, UndoOptions{Image: other}); err != nil || u.Path != other || !im.sameAs(t, other) {
		t.Errorf("an image that is named: %+v, %v", u, err)
	}
}

// A holeless file is on a host where holes do harm.
type holeless struct {
	noAlloc
	t *testing.T
}

func (f holeless) Truncate(size int64) error {
	if now, err := f.Size(); err != nil || size > now {
		f.t.Errorf("a file of %d bytes, %v, gets a hole up to %d", now, err, size)
	}
	return f.noAlloc.Truncate(size)
}

// A repair and an undo that make the file longer leave no hole where one does harm.
func TestUndoLeavesNoHole(t *testing.T) {
	for _, shrinks := range []bool{false, true} {
		im := damagedForUndo(shrinks)
		f := holeless{noAlloc{im.memFile.clone(), false}, t}
		undo := new(undoDouble)
		if _, err := planOn(t, f).apply(undo); err != nil {
			t.Fatal(err)
		}
		u, _, err := undo.open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.restore(t.Context(), f, false); err != nil || !sameBytes(f, im.memFile) {
			t.Errorf("the undo did not bring back what was there: %v", err)
		}
	}
}

// Two repairs are undone in the order in which they have to be, and not otherwise.
func TestUndoOfTwoRepairs(t *testing.T) {
	im := build(spec{blocks: oneBlock})
	im.setBlockEntry(1, ondisk.NewBATEntry(ondisk.FullyPresent, ondisk.TiB))
	im.write(im.random(5), im.size+ondisk.MiB)
	path := chain{im}.writeTo(t, t.TempDir())
	first := mustRepair(t, path, RepairOptions{FreeLeaks: true})
	second := mustRepair(t, path, RepairOptions{FreeLeaks: true}) // of the space, which the first has left
	if !first.Changed || !second.Changed {
		t.Fatalf("repairs %+v, %+v", first.Fixes, second.Fixes)
	}
	if _, err := Undo(t.Context(), first.UndoFile, UndoOptions{}); !errors.Is(err, ErrChanged) {
		t.Errorf("the first repair first: %v", err)
	}
	if _, err := Undo(t.Context(), second.UndoFile, UndoOptions{}); err != nil {
		t.Errorf("the second: %v", err)
	}
	im.undo(t, path, first)
}

// An image whose repair was interrupted is restored before it is repaired again: what was wrong may not show any more.
func TestRepairAfterAnInterruptedOne(t *testing.T) {
	im := damagedForUndo(true)
	path := chain{im}.writeTo(t, t.TempDir())
	if err := os.WriteFile(path+".undo", []byte("something else"), 0o666); err != nil {
		t.Fatal(err)
	}
	r := mustRepair(t, path, RepairOptions{FreeLeaks: true})
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(im.read(ondisk.HeaderOffsets[1], ondisk.HeaderSize), ondisk.HeaderOffsets[1]); err != nil { // the last but one that is written
		t.Fatal(err)
	}
	if _, err := Repair(t.Context(), path, RepairOptions{FreeLeaks: true}); !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), r.UndoFile) {
		t.Errorf("Repair: %v", err)
	}
	im.undo(t, path, r)
	mustRepair(t, path, RepairOptions{FreeLeaks: true})
}

// A header that is damaged after a repair is no sign that the repair was interrupted.
func TestRepairOfAHeaderAfterARepair(t *testing.T) {
	for _, off := range ondisk.HeaderOffsets {
		im := damagedForUndo(false)
		path := chain{im}.writeTo(t, t.TempDir())
		first := mustRepair(t, path, RepairOptions{})
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("garbage"), off+20); err != nil {
			t.Fatal(err)
		}
		second := mustRepair(t, path, RepairOptions{})
		if !second.Changed || !second.After.Clean() {
			t.Errorf("header at %#x: %+v, and then %+v", off, second.Fixes, second.After)
		}
		if _, err := Undo(t.Context(), second.UndoFile, UndoOptions{}); err != nil {
			t.Error(err)
		}
		im.undoByForce(t, path, first)
	}
}

// undoByForce takes a repair back although the image was changed since.
func (f *memFile) undoByForce(t *testing.T, path string, r *RepairReport) {
	t.Helper()
	if _, err := Undo(t.Context(), r.UndoFile, UndoOptions{}); !errors.Is(err, ErrChanged) {
		t.Errorf("Undo: %v, want ErrChanged", err)
	}
	if _, err := Undo(t.Context(), r.UndoFile, UndoOptions{Force: true}); err != nil || !f.sameAs(t, path) {
		t.Errorf("by force it is not what it was: %v", err)
	}
}

func TestUndoCommand(t *testing.T) {
	for name, want := range map[string]string{
		"/srv/vm/a-1.vhdx.undo":  "/srv/vm/a-1.vhdx.undo",
		"Windows 10.vhdx.undo":   "'Windows 10.vhdx.undo'",
		"it's $(date).vhdx.undo": `'it'\''s $(date).vhdx.undo'`,
	} {
		if got := UndoCommand(name, strings.TrimSuffix(name, ".undo")); got != "vhdxfs check --undo "+want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// A pipe in the place of an undo file makes no caller wait.
func TestUndoFileIsAPipe(t *testing.T) {
	path := chain{damagedForUndo(false)}.writeTo(t, t.TempDir())
	if err := unix.Mkfifo(path+".undo", 0o600); err != nil {
		t.Skipf("no named pipes here: %v", err)
	}
	if r := mustRepair(t, path, RepairOptions{}); r.UndoFile != path+".undo2" {
		t.Errorf("undo file %s", r.UndoFile)
	}
	if _, err := Undo(t.Context(), path+".undo", UndoOptions{Image: path}); err == nil {
		t.Error("an undo from a pipe")
	}
}

// An undo file may come from anyone. It changes only an image that is beside it or was named, and nothing that is no image.
func TestUndoFileOfAnotherFile(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "passwd")
	content := bytes.Repeat([]byte("a line\n"), 3*ondisk.PageSize)
	if err := os.WriteFile(victim, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	u, err := undofile.NewWriter(&b, undofile.Header{OldSize: int64(len(content)), NewSize: int64(len(content)), Path: victim})
	sums := undofile.SectorSums(content[:ondisk.PageSize])
	if err := errors.Join(err, u.Record(0, make([]byte, ondisk.PageSize), sums), u.End()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	undoFile := filepath.Join(dir, "some.undo")
	if err := os.WriteFile(undoFile, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Undo(t.Context(), undoFile, UndoOptions{Image: victim}); !errors.Is(err, ErrChanged) {
		t.Errorf("Undo: %v, want ErrChanged", err)
	}
	for _, force := range []bool{false, true} {
		if _, err := Undo(t.Context(), undoFile, UndoOptions{Force: force}); !errors.Is(err, ErrOptions) {
			t.Errorf("force %v, where it is not beside: %v, want ErrOptions", force, err)
		}
	}
	for _, to := range []string{victim, filepath.Join("..", filepath.Base(filepath.Dir(victim)), "passwd")} {
		link := filepath.Join(dir, "passwd")
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
		if _, err := Undo(t.Context(), undoFile, UndoOptions{Force: true}); !errors.Is(err, ErrOptions) {
			t.Errorf("a symbolic link to %s is beside it: %v, want ErrOptions", to, err)
		}
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
	}
	if now, err := os.ReadFile(victim); err != nil || !bytes.Equal(now, content) {
		t.Errorf("the file was changed, %v", err)
	}
}

// A damaged undo file is refused before anything is changed.
func TestUndoFileDamaged(t *testing.T) {
	im := damagedForUndo(true)
	path := chain{im}.writeTo(t, t.TempDir())
	r := mustRepair(t, path, RepairOptions{FreeLeaks: true})
	whole, err := os.ReadFile(r.UndoFile)
	if err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(what string, b []byte) {
		t.Helper()
		if err := os.WriteFile(r.UndoFile, b, 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := Undo(t.Context(), r.UndoFile, UndoOptions{Image: path, Force: true}); err == nil || errors.Is(err, ErrChanged) {
			t.Errorf("%s: %v", what, err)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(now, after) {
			t.Fatalf("%s: the image was changed, %v", what, err)
		}
	}
	step := len(whole)/fewer(97) + 1
	for n := 0; n < len(whole); n += step {
		refuse("cut", whole[:n])
		b := bytes.Clone(whole)
		b[n] ^= 4
		refuse("a flipped bit", b)
	}
	refuse("cut by a byte", whole[:len(whole)-1])
	refuse("without its end", whole[:len(whole)-undofile.RecordSize])
	if err := os.WriteFile(r.UndoFile, whole, 0o666); err != nil {
		t.Fatal(err)
	}
	im.undo(t, path, r)
}

// stampUndo makes the checksums of an undo file right, as far as it is one.
func stampUndo(b []byte) {
	stamp := func(b []byte, at int) { ondisk.LE.PutUint32(b[at:], ondisk.Checksum(b, at)) }
	if len(b) < undofile.HeaderSize {
		return
	}
	n := undofile.HeaderSize + int64(ondisk.LE.Uint32(b[56:]))
	if n > int64(len(b)) {
		return
	}
	stamp(b[:n], undofile.HeaderSum)
	for b = b[n:]; len(b) >= undofile.RecordSize; b = b[n:] {
		old, states := int64(ondisk.LE.Uint32(b[8:])), int64(ondisk.LE.Uint32(b[12:]))
		if n = undofile.RecordSize + (old+undofile.SectorSize-1)/undofile.SectorSize*undofile.SumSize*min(states, undofile.MaxStates+1) + old; n > int64(len(b)) {
			return
		}
		stamp(b[:n], undofile.RecordSum)
	}
}

// What an undo file says is checked, also if its checksums are good: anyone may have written it. The image that it names is one
// beside it, and nothing is written before all of it was read.
func FuzzUndo(f *testing.F) {
	base := build(spec{})
	for _, path := range []string{"/image.vhdx", "..", "/x/../..", "", "/link.vhdx", "/x/\x00"} {
		var b bytes.Buffer
		u, err := undofile.NewWriter(&b, undofile.Header{OldSize: base.size, NewSize: base.size - ondisk.PageSize, Path: path})
		if err := errors.Join(err, u.Record(ondisk.HeaderOffsets[0], make([]byte, 1000), undofile.SectorSums(make([]byte, 1000))), u.End()); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes(), true)
		f.Add(b.Bytes(), false)
	}
	dir := f.TempDir()
	image := filepath.Join(dir, "image.vhdx")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Symlink("/dev/null", filepath.Join(dir, "link.vhdx"))); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte, force bool) {
		in = bytes.Clone(in)
		stampUndo(in)
		u, err := newUndoReader(bytes.NewReader(in), int64(len(in)))
		if err != nil {
			return
		}
		directory, _, err := safefile.Split(filepath.Join(dir, "image.vhdx.undo"))
		if err != nil {
			t.Fatal(err)
		}
		defer directory.Close()
		if named, path, err := u.image(directory, ""); err == nil {
			named.Close()
			if path != image {
				t.Errorf("the undo file of %q is let write %s", u.Path, path)
			}
		}
		file := base.clone()
		_, err = u.restore(t.Context(), file, force)
		if err == nil && file.size != u.OldSize {
			t.Errorf("the file has %d bytes, the undo file says %d", file.size, u.OldSize)
		}
		if err != nil && !sameBytes(file, base.memFile) {
			t.Errorf("the image was changed: %v", err)
		}
	})
}

// A disk that is full before the undo file is complete leaves the image untouched; one that is full later has the image
// restored.
func TestRepairOnAFullDisk(t *testing.T) {
	im := damagedForUndo(false)
	full := &undoDouble{limit: 5000}
	if _, err := planOn(t, im.clone()).apply(full); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "the image is unchanged") || full.there {
		t.Errorf("the undo file does not fit: %v", err)
	}
	base := im.clone()
	file := &faultFile{File: base, limit: im.size + 100}
	undo := &undoDouble{}
	if _, err := planOn(t, file).apply(undo); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "the image is unchanged") || undo.there {
		t.Errorf("the image cannot grow: %v", err)
	}
	if !sameBytes(base, im.memFile) {
		t.Error("the image was not restored")
	}
	// So does any other failure.
	for n := int64(1); ; n++ {
		base := im.clone()
		file := &faultFile{File: base}
		left := n
		file.failWrite = func(int64) error {
			if left--; left == 0 {
				return errInjected
			}
			return nil
		}
		undo := &undoDouble{}
		_, err := planOn(t, file).apply(undo)
		if err == nil {
			break
		}
		if !errors.Is(err, errInjected) || undo.there || !sameBytes(base, im.memFile) {
			t.Fatalf("write %d fails: %v; the undo file is there: %v", n, err, undo.there)
		}
	}
}
