package test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every file system writes in its own way: what they all do must hold on disks of every kind, through the loop
// device, fsck, fstrim and mounts anew. With -long, every file system meets every kind of disk.
func TestFileSystemsWrite(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	for _, tc := range []struct {
		fstype, variant string
		long            bool
	}{
		{"ext4", "dynamic", false},
		{"xfs", "dynamic", false},
		{"btrfs", "dynamic", false},
		{"ntfs", "dynamic", false},
		{"ext4", "dynamic 4096", false},
		{"xfs", "dynamic 4096", false},
		{"btrfs", "dynamic 4096", true},
		{"ntfs", "dynamic 4096", true},
		{"ext4", "fixed", true},
		{"xfs", "fixed", true},
		{"btrfs", "fixed", true},
		{"ntfs", "fixed", true},
		{"ext4", "differencing", false},
		{"xfs", "differencing", true},
		{"btrfs", "differencing", false},
		{"ntfs", "differencing", true},
		{"ext4", "differencing 4096", true},
		{"xfs", "differencing 4096", false},
		{"btrfs", "differencing 4096", true},
		{"ntfs", "differencing 4096", true},
	} {
		if tc.long && !*long {
			continue
		}
		t.Run(tc.fstype+"/"+tc.variant, func(t *testing.T) {
			fileSystemWrites(t, tc.fstype, variantNamed(t, tc.variant))
		})
	}
}

func variantNamed(t *testing.T, name string) variant {
	t.Helper()
	for _, v := range variants {
		if v.name == name {
			return v
		}
	}
	t.Fatalf("no variant %q", name)
	return variant{}
}

func fileSystemWrites(t *testing.T, fstype string, v variant) {
	requireLoop(t)
	requireFileSystem(t, fstype)
	img := v.create(t, "400MiB")
	s := serve(t, img)
	l := attachRW(t, s.disk, v.sector)
	mkfs(t, fstype, l.dev)

	inside := mountWritable(t, l.dev, fstype)
	want := churn(t, inside, rand.New(rand.NewPCG(400, uint64(len(fstype)))))
	must(t, "sync", "--file-system", inside)
	trim(t, inside)
	unmount(t, inside)
	fsck(t, fstype, l.dev)

	// The same mount, the file system anew: nothing is in the kernel's caches of it any more.
	inside = mountWritable(t, l.dev, fstype)
	sameTree(t, "mounted again", inside, want)
	must(t, "sh", "-c", `rm -r "$1"/d0 && sync --file-system "$1"`, "-", inside)
	maps.DeleteFunc(want, func(name, _ string) bool { return strings.HasPrefix(name, "d0/") })
	trim(t, inside)
	unmount(t, inside)
	l.detach(t)
	s.end(t)
	checkClean(t, img)

	s = serve(t, img)
	l = attachRW(t, s.disk, v.sector)
	fsck(t, fstype, l.dev)
	sameTree(t, "in a new mount of the image", mountInside(t, l.dev, fstype), want)
}

// requireFileSystem skips the test unless this machine can make the file system, mount and check it.
func requireFileSystem(t *testing.T, fstype string) {
	t.Helper()
	switch fstype {
	case "ext4":
		requireTools(t, "mkfs.ext4", "e2fsck", "fstrim")
	case "xfs":
		requireTools(t, "mkfs.xfs", "xfs_repair", "fstrim")
	case "btrfs":
		requireTools(t, "mkfs.btrfs", "btrfs", "fstrim")
	case "ntfs":
		requireTools(t, "mkfs.ntfs", "ntfs-3g", "ntfsfix", "fstrim")
		return
	}
	requireKernelFS(t, fstype)
}

func mkfs(t *testing.T, fstype, dev string) {
	t.Helper()
	switch fstype {
	case "ext4":
		must(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", dev)
	case "xfs":
		must(t, "mkfs.xfs", "-q", "-f", dev)
	case "btrfs":
		must(t, "mkfs.btrfs", "-q", "-f", dev)
	case "ntfs":
		must(t, "mkfs.ntfs", "-q", "-Q", "-F", dev)
	}
}

// mountWritable mounts the file system on a device for reading and writing and returns the directory.
func mountWritable(t *testing.T, dev, fstype string) string {
	t.Helper()
	dir := newDir(t)
	if fstype == "ntfs" {
		must(t, "ntfs-3g", dev, dir)
	} else {
		must(t, "mount", "-t", fstype, dev, dir)
	}
	t.Cleanup(func() {
		if _, mounted := mountAt(dir); mounted {
			unmount(t, dir)
		}
	})
	return dir
}

// trim discards what the file system inside does not use.
func trim(t *testing.T, inside string) {
	t.Helper()
	must(t, "fstrim", inside)
}

// fsck fails the test unless the file system, which is not mounted, is without fault.
func fsck(t *testing.T, fstype, dev string) {
	t.Helper()
	switch fstype {
	case "ext4":
		must(t, "e2fsck", "-f", "-n", dev)
	case "xfs":
		must(t, "xfs_repair", "-n", dev)
	case "btrfs":
		must(t, "btrfs", "check", "--readonly", dev)
	case "ntfs":
		must(t, "ntfsfix", "--no-action", dev)
	}
}

func sameTree(t *testing.T, when, dir string, want map[string]string) {
	t.Helper()
	got := withoutLostFound(readTree(t, dir))
	if maps.Equal(got, want) {
		return
	}
	for name, sum := range want {
		switch g, ok := got[name]; {
		case !ok:
			t.Errorf("%s: %s is not there", when, name)
		case g != sum:
			t.Errorf("%s: %s has digest %s, want %s", when, name, g, sum)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %s is there", when, name)
		}
	}
}

// churn makes hundreds of files of many sizes below dir, some with holes, and then renames, cuts, overwrites and
// removes some of them. It returns the digest of each file that is left.
func churn(t *testing.T, dir string, rng *rand.Rand) map[string]string {
	t.Helper()
	var names []string
	for i := range 300 {
		name := filepath.Join(fmt.Sprintf("d%d", i%7), fmt.Sprintf("s%d", i%3), fmt.Sprintf("file%d", i))
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), writeRandomFile(path, rng)); err != nil {
			t.Fatal(err)
		}
		names = append(names, path)
		var err error
		switch j := rng.IntN(len(names)); rng.IntN(6) {
		case 0:
			err = os.Remove(names[j])
			names = append(names[:j], names[j+1:]...)
		case 1:
			renamed := names[j] + " renamed"
			err = os.Rename(names[j], renamed)
			names[j] = renamed
		case 2:
			err = os.Truncate(names[j], rng.Int64N(300_000))
		case 3:
			err = writeRandomFile(names[j], rng)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return withoutLostFound(readTree(t, dir))
}

// writeRandomFile writes pieces of random bytes, mostly small ones, with a hole before some.
func writeRandomFile(path string, rng *rand.Rand) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	off := int64(0)
	for range 1 + rng.IntN(3) {
		if rng.IntN(3) == 0 {
			off += rng.Int64N(500_000)
		}
		b := randomBytes(rng, rng.IntN(1<<(1+rng.IntN(19))))
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
		off += int64(len(b))
	}
	if rng.IntN(8) == 0 {
		return f.Sync()
	}
	return nil
}

// randomBytes returns n random bytes.
func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}
