package test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dissectEnv names a Python that has the package dissect.hypervisor, where there is one.
const dissectEnv = "VHDXFS_DISSECT_PYTHON"

// dissectSum prints the digest of a disk as dissect.hypervisor reads it.
const dissectSum = `
import hashlib, pathlib, sys
from dissect.hypervisor.disk.vhdx import VHDX
disk, digest = VHDX(pathlib.Path(sys.argv[1])), hashlib.sha256()
while part := disk.read(1 << 20):
    digest.update(part)
print(digest.hexdigest())
`

// readByOthers fails the test where another program reads img otherwise than we do.
func readByOthers(t *testing.T, after, img string, v variant) {
	t.Helper()
	checkClean(t, img)
	s := readOnly(t, img)
	want := sha256File(t, s.disk)
	s.end(t)
	same := func(by, got string) {
		if got != want {
			t.Errorf("after %s, %s reads %s otherwise", after, by, filepath.Base(img))
		}
	}
	if in := info(t, img); in.Type != "differencing" && v.sector == 512 {
		same("QEMU", sha256File(t, qemuRaw(t, img)))
	}
	same("libvhdi", libvhdiSum(t, img))
	ofChild := v.child && filepath.Ext(img) == ".avhdx" // a child's child: dissect 3.21 takes some sectors for the wrong layer's
	if python := os.Getenv(dissectEnv); python != "" && !ofChild {
		same("dissect", strings.TrimSpace(must(t, python, "-c", dissectSum, img)))
	}
}

// libvhdi mounts an image with vhdimount and returns the path of its disk.
func libvhdi(t *testing.T, img string) (disk string, end func()) {
	t.Helper()
	dir := newDir(t)
	must(t, "vhdimount", img, dir) // it shows each disk of the chain, the child's last
	end = func() { unmount(t, dir) }
	shown, err := filepath.Glob(filepath.Join(dir, "vhdi*"))
	if err != nil || len(shown) == 0 {
		end()
		t.Fatalf("vhdimount shows %v, %v", shown, err)
	}
	return shown[len(shown)-1], end
}

// libvhdiSum returns the digest of a disk as libvhdi reads it.
func libvhdiSum(t *testing.T, img string) string {
	t.Helper()
	disk, end := libvhdi(t, img)
	defer end()
	return sha256File(t, disk)
}

// What the tools write, other programs read as we do. Left out is what libvhdi 20210425 reads wrongly: blocks of a child
// that hide its parent's with zeros, chunks of a child without a sector bitmap block, and a child that is larger than its
// parent.
func TestOthersReadWhatToolsWrite(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "qemu-img", "vhdimount")
	for i, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(i), 9))
			img := v.create(t, "64MiB")
			dir := filepath.Dir(img)
			write := func(img string) {
				s := serve(t, img, "-o", "discard=unmap")
				f := openDisk(t, s.disk, 0)
				for range 20 {
					off := rng.Int64N(50*mib/v.sector) * v.sector
					writePattern(t, f, byte(1+rng.IntN(255)), off, v.sector*(1+rng.Int64N(1<<(1+rng.IntN(10)))))
				}
				f.Close()
				s.end(t)
			}
			write(img)
			readByOthers(t, "writes", img, v)
			if !v.child {
				s := serve(t, img, "-o", "discard=unmap")
				must(t, "fallocate", "--punch-hole", "--offset", "8MiB", "--length", "20MiB", s.disk)
				s.end(t)
			}
			mustVhdxfs(t, "compact", "-q", img)
			readByOthers(t, "compact", img, v)
			sizes := []string{"52M", "53252096"}
			if !v.child {
				sizes = append(sizes, "100M")
			}
			for _, size := range sizes {
				mustVhdxfs(t, "resize", "--force", img, size)
				readByOthers(t, "resize to "+size, img, v)
			}
			write(img)
			mustVhdxfs(t, "compact", "-q", img)
			readByOthers(t, "compact of a resized disk", img, v)

			flat := filepath.Join(dir, "flat.vhdx")
			mustVhdxfs(t, "flatten", img, flat)
			readByOthers(t, "flatten", flat, v)
			fixed := filepath.Join(dir, "fixed.vhdx")
			mustVhdxfs(t, "convert", "--type", "fixed", flat, fixed)
			readByOthers(t, "convert", fixed, v)

			child := filepath.Join(dir, "later.avhdx")
			mustVhdxfs(t, "snapshot", img, child)
			write(child)
			readByOthers(t, "snapshot", child, v)
			aside := filepath.Join(dir, "renamed.vhdx")
			if !v.child { // whose parent is told its end by its name
				if err := os.Rename(img, aside); err != nil {
					t.Fatal(err)
				}
				img = aside
				mustVhdxfs(t, "set-parent", child, img)
				readByOthers(t, "set-parent", child, v)
			}
			mustVhdxfs(t, "merge", child)
			readByOthers(t, "merge", img, v)
		})
	}
}

// What qemu-img makes of a disk, in each of its forms, the tools read, change and write again, and QEMU reads the same.
func TestToolsTakeQemuImages(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "qemu-img")
	source := create(t, "70MiB", "--block-size", "1MiB")
	s := serve(t, source)
	for i := range int64(20) {
		writeAt(t, s.disk, fill(byte(i+1)), i*3*mib+512*i)
	}
	raw := filepath.Join(t.TempDir(), "disk.raw")
	must(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", s.disk, raw)
	s.end(t)
	for _, options := range []string{
		"subformat=dynamic", "subformat=dynamic,block_size=1M", "subformat=dynamic,block_size=256M", "subformat=fixed",
		"subformat=fixed,block_size=4M,log_size=2M", "subformat=dynamic,block_size=2M,block_state_zero=off",
	} {
		t.Run(options, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "qemu.vhdx")
			must(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", options, raw, img)
			mustVhdxfs(t, "compare", img, raw)
			mustVhdxfs(t, "compact", "-q", img)
			sameToQemu(t, img, "vhdx", raw)
			mustVhdxfs(t, "resize", img, "200M")
			mustVhdxfs(t, "resize", img, "70M")
			sameToQemu(t, img, "vhdx", raw)
			checkClean(t, img)
			for _, args := range [][]string{{"--type", "fixed"}, {"--type", "dynamic", "--block-size", "8MiB"}} {
				out := filepath.Join(t.TempDir(), "out.vhdx")
				mustVhdxfs(t, append(append([]string{"convert"}, args...), img, out)...)
				sameToQemu(t, out, "vhdx", raw)
			}
			child := filepath.Join(filepath.Dir(img), "child.avhdx")
			mustVhdxfs(t, "snapshot", img, child)
			s := serve(t, child)
			writeAt(t, s.disk, fill(0x77), 5*mib)
			s.end(t)
			mustVhdxfs(t, "merge", child)
			s = readOnly(t, img)
			sameToQemu(t, img, "vhdx", s.disk)
			s.end(t)
		})
	}
}
