package vhdx

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// newParent writes an image of 5 MiB with random blocks to a new directory, and returns it and its path.
func newParent(t *testing.T, s spec) (*image, string) {
	t.Helper()
	if s.diskSize == 0 {
		s.diskSize = 5 * ondisk.MiB
	}
	s.blocks = []blockSpec{{0, ondisk.FullyPresent}, {2, ondisk.FullyPresent}, {3, ondisk.Zero}}
	img := build(s)
	path := filepath.Join(t.TempDir(), "base.vhdx")
	img.writeTo(t, path)
	return img, path
}

func TestCreateChild(t *testing.T) {
	for _, tc := range []struct {
		name   string
		parent spec
		o      CreateOptions
	}{
		{"same size", spec{}, CreateOptions{}},
		{"4096-byte sectors", spec{sectorSize: 4096}, CreateOptions{}},
		{"larger, other blocks", spec{}, CreateOptions{Size: 9 * ondisk.MiB, BlockSize: 2 * ondisk.MiB}},
		// The entries of the last chunk, of which the disk has but one block, need a second MiB of BAT.
		{"BAT of whole chunks", spec{diskSize: (31*4096 + 1) * ondisk.MiB}, CreateOptions{}},
		{"more than a chunk", spec{diskSize: 6 << 30, blockSize: 2 * ondisk.MiB}, CreateOptions{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			parent, path := newParent(t, tc.parent)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			child := filepath.Join(filepath.Dir(path), "child.vhdx")
			tc.o.Parent = path
			if err := Create(child, tc.o); err != nil {
				t.Fatal(err)
			}
			if after, err := os.ReadFile(path); err != nil || string(before) != string(after) {
				t.Errorf("the parent was changed, or %v", err)
			}
			report, err := Check(child, Options{})
			if err != nil || !report.Sound() || len(report.Warnings) > 0 || report.Leaked != 0 {
				t.Errorf("Check: %v, %+v", err, report)
			}
			im, err := Open(child, Options{Writable: true})
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			in := im.Info()
			if in.Type != Differencing || in.DiskSize != max(tc.o.Size, parent.diskSize) || in.DiskID != in.Parent.Image.DiskID ||
				in.LogicalSectorSize != parent.sectorSize || in.BlockSize != max(tc.o.BlockSize, parent.blockSize) {
				t.Errorf("made %+v", in)
			}
			want, got := make([]byte, 5*ondisk.MiB), make([]byte, 5*ondisk.MiB)
			chain{parent}.want(want, 0)
			if _, err := im.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if i := firstDifference(got, want); i >= 0 {
				t.Errorf("byte %d is %#x, the parent has %#x", i, got[i], want[i])
			}
			// Writing to the last block needs its sector bitmap, and so the BAT entries of the last chunk.
			if _, err := im.WriteAt([]byte{1}, im.Size()-1); err != nil {
				t.Error(err)
			}
			if err := im.Sync(); err != nil {
				t.Error(err)
			}
		})
	}
}

// What belongs to the virtual disk goes to the child, what belongs to the file does not.
func TestChildInheritsMetadata(t *testing.T) {
	disk, file := uuid.New(), uuid.New()
	_, path := newParent(t, spec{items: []rawItem{
		{disk, ondisk.ItemIsUser | ondisk.ItemIsVirtualDisk, []byte("of the disk")},
		{file, ondisk.ItemIsUser, []byte("of the file")},
	}})
	child := filepath.Join(filepath.Dir(path), "child.vhdx")
	if err := Create(child, CreateOptions{Parent: path}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(child, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	found := map[uuid.UUID]bool{}
	for _, m := range im.Info().Metadata {
		found[m.GUID] = true
	}
	if !found[disk] || found[file] {
		t.Errorf("items %v", found)
	}
}

func TestChildOfAChild(t *testing.T) {
	_, path := newParent(t, spec{})
	for i := range 3 {
		child := filepath.Join(filepath.Dir(path), fmt.Sprintf("child%d.vhdx", i))
		if err := Create(child, CreateOptions{Parent: path}); err != nil {
			t.Fatal(err)
		}
		path = child
	}
	im, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if _, err := im.ReadAt(make([]byte, 100), 0); err != nil {
		t.Error(err)
	}
}

func TestCreateChildRefuses(t *testing.T) {
	_, path := newParent(t, spec{})
	dir := filepath.Dir(path)
	broken := filepath.Join(dir, "broken.vhdx")
	if err := os.WriteFile(broken, make([]byte, 4*ondisk.MiB), 0o600); err != nil {
		t.Fatal(err)
	}
	colon := filepath.Join(dir, "a:b.vhdx")
	if err := os.Link(path, colon); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		path string // of the child
		o    CreateOptions
		want string
	}{
		{"no such parent", "", CreateOptions{Parent: filepath.Join(dir, "missing.vhdx")}, "no such file"},
		{"damaged parent", "", CreateOptions{Parent: broken}, "R2"},
		{"smaller", "", CreateOptions{Parent: path, Size: 4 * ondisk.MiB}, "must be at least 5 MiB, the size of the parent"},
		{"other sectors", "", CreateOptions{Parent: path, LogicalSectorSize: 4096}, "must be 512, as in the parent"},
		{"dynamic", "", CreateOptions{Parent: path, Type: Dynamic}, "has no parent"},
		{"over the parent", path, CreateOptions{Parent: path, Replace: true}, "is the parent itself"},
		{"name", "", CreateOptions{Parent: colon}, "colon"},
		{"path", "", CreateOptions{Parent: path, ParentPaths: []string{"base.vhdx"}}, "such as D:"},
		{"two drives", "", CreateOptions{Parent: path, ParentPaths: []string{`C:\a`, `D:\a`}}, "given twice"},
		{"zero blocks", "", CreateOptions{Parent: path, ZeroBlocks: true}, "needs a dynamic image"},
		{"paths without parent", "", CreateOptions{Size: ondisk.MiB, ParentPaths: []string{`C:\a`}}, "needs --parent"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			child := tc.path
			if child == "" {
				child = filepath.Join(dir, "child.vhdx")
			}
			before, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := Create(child, tc.o); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if after, err := os.ReadDir(dir); err != nil || len(after) != len(before) {
				t.Errorf("the directory holds %v, %v", after, err)
			}
		})
	}
}

func TestCreateLeavesALockedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "used.vhdx")
	if err := Create(path, CreateOptions{Size: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := Create(path, CreateOptions{Size: 2 * ondisk.MiB, Replace: true}); !errors.Is(err, ErrLocked) {
		t.Errorf("Create over an image in use: %v", err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Create(path, CreateOptions{Size: 2 * ondisk.MiB, Replace: true}); err != nil {
		t.Error(err)
	}
	if im, err = Open(path, Options{}); err != nil || im.Size() != 2*ondisk.MiB {
		t.Fatalf("the image was not replaced: %v", err)
	}
	im.Close()
}

func TestParentKeys(t *testing.T) {
	id := uuid.MustParse("AAAAAAAA-BBBB-CCCC-DDDD-EEEEEEEEEEEE")
	linkage := `{aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee}`
	for _, tc := range []struct {
		child, parent string
		further       []string
		want          [4]string // relative, volume, absolute
	}{
		{"/vm/child.vhdx", "/vm/base.vhdx", nil, [4]string{`.\base.vhdx`, "", `\\?\C:\vm\base.vhdx`}},
		{"/vm/a/child.vhdx", "/vm/b/base.vhdx", nil, [4]string{`..\b\base.vhdx`, "", `\\?\C:\vm\b\base.vhdx`}},
		{"/vm/child.vhdx", "/vm/b/Größe.vhdx", []string{`D:\b\Größe.vhdx`}, [4]string{`.\b\Größe.vhdx`, "", `\\?\D:\b\Größe.vhdx`}},
		{"/c", "/p", []string{`\\?\d:/x/p`, `\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\x\p`},
			[4]string{`.\p`, `\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\x\p`, `\\?\d:\x\p`}},
		{"/c", "/p", []string{`\\server\share\p`}, [4]string{`.\p`, "", `\\?\UNC\server\share\p`}},
		{"/c", "/p", []string{`\\?\UNC\server\share\p`}, [4]string{`.\p`, "", `\\?\UNC\server\share\p`}},
	} {
		keys, err := parentKeys(tc.child, tc.parent, tc.further, id)
		if err != nil {
			t.Errorf("%+v: %v", tc, err)
			continue
		}
		got := map[string]string{}
		for _, kv := range keys {
			got[kv[0]] = kv[1]
		}
		if got[ondisk.KeyLinkage] != linkage || got[ondisk.KeyRelativePath] != tc.want[0] || got[ondisk.KeyVolumePath] != tc.want[1] || got[ondisk.KeyAbsolutePath] != tc.want[2] {
			t.Errorf("%+v: keys %q", tc, keys)
		}
	}
}
