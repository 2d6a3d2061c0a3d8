package test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// attach attaches file to a free loop device, read-only, with sectors of that many bytes, and lets the kernel
// read the partition table. It returns the device's path. The test's end detaches it.
func attach(t *testing.T, file string, sector int64) string {
	t.Helper()
	requireLoop(t)
	dev := strings.TrimSpace(must(t, "losetup", "--find", "--show", "--read-only", "--partscan",
		"--sector-size", strconv.FormatInt(sector, 10), file))
	t.Cleanup(func() {
		must(t, "losetup", "--detach", dev)
		state := filepath.Join("/sys/block", filepath.Base(dev), "loop/backing_file")
		eventually(t, dev+" to be detached", func() bool {
			b, err := os.ReadFile(state)
			return err != nil || strings.TrimSpace(string(b)) != file // it may serve another already
		})
	})
	return dev
}

// partition returns the device of partition n, and checks where it begins.
func partition(t *testing.T, dev string, n int, sector, startSector int64) string {
	t.Helper()
	part := fmt.Sprintf("%sp%d", dev, n)
	sys := filepath.Join("/sys/block", filepath.Base(dev), filepath.Base(part))
	if _, err := os.Stat(sys); err != nil {
		// A kernel that is built without partition tables lets a program read them.
		requireTools(t, "partx")
		must(t, "partx", "--add", dev)
	}
	eventually(t, "the partition "+part, func() bool {
		_, err := os.Stat(part)
		return err == nil
	})
	begin, err := os.ReadFile(filepath.Join(sys, "start"))
	if err != nil {
		t.Fatal(err)
	}
	// sysfs counts in units of 512 bytes, whatever the sectors of the device are.
	if got := strings.TrimSpace(string(begin)); got != strconv.FormatInt(startSector*sector/512, 10) {
		t.Errorf("partition %d begins at %s units of 512 bytes, want %d", n, got, startSector*sector/512)
	}
	return part
}

// mountOptions lets each file system be mounted from a device that cannot be written: none may replay its journal.
var mountOptions = map[string]string{
	"ext4":  "ro,noload",
	"xfs":   "ro,norecovery,nouuid",
	"btrfs": "ro",
	"exfat": "ro",
}

// mountInside mounts the file system on a device read-only and returns the directory. It skips the test where
// neither the kernel nor an installed program knows the file system.
func mountInside(t *testing.T, dev, fstype string) string {
	t.Helper()
	dir := newDir(t)
	if fstype == "ntfs" {
		requireTools(t, "ntfs-3g")
		must(t, "ntfs-3g", "-o", "ro", dev, dir)
	} else {
		requireKernelFS(t, fstype)
		must(t, "mount", "-t", fstype, "-o", mountOptions[fstype], dev, dir)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// requireKernelFS skips the test where the kernel has no such file system.
func requireKernelFS(t *testing.T, fstype string) {
	t.Helper()
	command("modprobe", "--quiet", fstype) // the kernel may have it built in, or no modules at all
	list, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Skipf("cannot tell what file systems the kernel has: %v", err)
	}
	for _, name := range strings.Fields(string(list)) {
		if name == fstype {
			return
		}
	}
	t.Skipf("needs %s, which this kernel does not have", fstype)
}

// readTree reads all files below dir and returns the digest of each by its path. It fails the test on an error.
func readTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EOPNOTSUPP) {
			return nil // NTFS's own files, which ntfs-3g keeps to itself
		}
		if err != nil {
			return err
		}
		defer f.Close()
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		tree[name], err = sha256Of(io.Reader(f))
		return err
	})
	if err != nil {
		t.Fatalf("read what is in the image: %v", err)
	}
	return tree
}
