package test

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sampleTree makes a directory with files of many sizes, the same ones each time.
func sampleTree(t *testing.T) string {
	t.Helper()
	dir := newDir(t)
	rng := rand.New(rand.NewPCG(7, 7))
	for i, size := range []int{0, 1, 511, 4096, 4097, 70_000, mib, 3*mib + 17} {
		sub := filepath.Join(dir, fmt.Sprintf("directory %d", i%3))
		b := randomBytes(rng, size)
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file of %d bytes", size)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// makeFS puts a file system on a raw file or device and the tree into it.
func makeFS(t *testing.T, fstype, target, tree string) {
	t.Helper()
	switch fstype {
	case "ext4":
		requireTools(t, "mkfs.ext4")
		must(t, "mkfs.ext4", "-q", "-F", "-d", tree, target)
		return
	case "btrfs":
		requireTools(t, "mkfs.btrfs")
		must(t, "mkfs.btrfs", "-q", "-f", "--rootdir", tree, target)
		return
	case "xfs":
		requireTools(t, "mkfs.xfs")
		requireKernelFS(t, "xfs")
		must(t, "mkfs.xfs", "-q", "-f", target)
	case "ntfs":
		requireTools(t, "mkfs.ntfs", "ntfs-3g")
		must(t, "mkfs.ntfs", "-q", "-Q", "-F", target)
	}
	dir := newDir(t)
	if fstype == "ntfs" {
		must(t, "ntfs-3g", target, dir)
	} else {
		must(t, "mount", "-t", fstype, target, dir)
	}
	defer unmount(t, dir)
	must(t, "cp", "-r", tree+"/.", dir)
}

// The disk is made by others from beginning to end; we only read it.
func TestFileSystemsInside(t *testing.T) {
	t.Parallel()
	for _, fstype := range []string{"ext4", "xfs", "btrfs", "ntfs"} {
		t.Run(fstype, func(t *testing.T) {
			requireLoop(t)
			requireTools(t, "qemu-img")
			dir, tree := t.TempDir(), sampleTree(t)
			raw, img := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.vhdx")
			must(t, "truncate", "--size", "400M", raw)
			makeFS(t, fstype, raw, tree)
			must(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic,block_size=1M", raw, img)

			s := readOnly(t, img)
			inside := mountInside(t, attach(t, s.disk, 512), fstype)
			if got, want := withoutLostFound(readTree(t, inside)), readTree(t, tree); !maps.Equal(got, want) {
				t.Errorf("files inside:\n%v\nwant\n%v", got, want)
			}
		})
	}
}

// A disk with 4096-byte sectors counts its partition table in them, so the loop device has to have them too.
func TestPartitionOf4096ByteSectors(t *testing.T) {
	requireLoop(t)
	requireTools(t, "qemu-img", "mkfs.ext4")
	const sector, first = 4096, 256 // bytes; sectors
	dir, tree := t.TempDir(), sampleTree(t)
	raw, img, part := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.vhdx"), filepath.Join(dir, "part")

	must(t, "truncate", "--size", "100M", raw)
	must(t, "truncate", "--size", "64M", part)
	must(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-d", tree, part)
	must(t, "dd", "if="+part, "of="+raw, "bs=4096", fmt.Sprint("seek=", first), "conv=notrunc,sparse", "status=none")
	partitionTable(t, raw, sector, first, 64*mib/sector)

	must(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic,block_size=1M", raw, img)
	setLogicalSectorSize(t, img, sector)

	s := readOnly(t, img)
	sameContent(t, s.disk, raw)
	dev := attach(t, s.disk, sector)
	inside := mountInside(t, partition(t, dev, 1, sector, first), "ext4")
	if got, want := withoutLostFound(readTree(t, inside)), readTree(t, tree); !maps.Equal(got, want) {
		t.Errorf("files inside:\n%v\nwant\n%v", got, want)
	}
}

// partitionTable writes an MBR with one Linux partition, in sectors of the given size.
func partitionTable(t *testing.T, raw string, sector int, first, sectors uint32) {
	t.Helper()
	mbr := make([]byte, sector)
	entry := mbr[446:]
	entry[4] = 0x83 // Linux
	binary.LittleEndian.PutUint32(entry[8:], first)
	binary.LittleEndian.PutUint32(entry[12:], sectors)
	mbr[510], mbr[511] = 0x55, 0xAA
	writeAt(t, raw, mbr, 0)
}

// withoutLostFound takes away what a file system brings along by itself.
func withoutLostFound(tree map[string]string) map[string]string {
	maps.DeleteFunc(tree, func(name, _ string) bool { return strings.HasPrefix(name, "lost+found") })
	return tree
}
