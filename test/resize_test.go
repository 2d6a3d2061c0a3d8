package test

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// diskWithGPT makes an image with a GPT and one partition from 1 MiB on that holds a file system with a tree of files.
func diskWithGPT(t *testing.T, sector int64) (img, tree string) {
	t.Helper()
	requireTools(t, "sfdisk", "mkfs.ext4")
	tree = sampleTree(t)
	img = create(t, "200MiB", "--block-size", "1MiB", "--logical-sector-size", strconv.FormatInt(sector, 10))
	part := filepath.Join(t.TempDir(), "part.raw")
	must(t, "truncate", "--size", "100M", part)
	must(t, "mkfs.ext4", "-q", "-b", "4096", "-d", tree, part) // blocks that sectors of both sizes fit into
	s := serve(t, img)
	dev := strings.TrimSpace(must(t, "losetup", "--find", "--show", "--sector-size", strconv.FormatInt(sector, 10), s.disk))
	_, err := command("sh", "-c", "printf 'label: gpt\\nstart=1MiB, size=100MiB\\n' | sfdisk --quiet --no-reread --no-tell-kernel "+dev)
	if err == nil {
		_, err = command("dd", "if="+part, "of="+dev, "bs=1M", "seek=1", "conv=notrunc,fsync", "status=none")
	}
	must(t, "losetup", "--detach", dev)
	if err != nil {
		t.Fatal(err)
	}
	s.end(t)
	return img, tree
}

// A disk with a GPT becomes larger and smaller, and stays one with a sound GPT and the same files, for sfdisk, the
// kernel and QEMU. What would cut something off is refused, and leaves the image as it is.
func TestResize(t *testing.T) {
	t.Parallel()
	for _, sector := range []int64{512, 4096} {
		t.Run(strconv.FormatInt(sector, 10), func(t *testing.T) {
			requireLoop(t)
			img, tree := diskWithGPT(t, sector)
			before := sha256File(t, img)
			for _, tc := range []struct {
				args []string
				want string
			}{
				{[]string{img, "90M"}, "partition 1 ends at 101 MiB. Shrink that first"},
				{[]string{img, "150M"}, "--fix-gpt moves it"},
				{[]string{"--fix-gpt", img, "101M"}, "there is room up to"},
				{[]string{img, "65T"}, "at most 64 TiB"},
				{[]string{img, "+17"}, "must be a multiple of"},
				{[]string{img, "+64T"}, "at most 64 TiB"},
				{[]string{img, "much"}, "give a size such as"},
			} {
				r := vhdxfs(t, append([]string{"resize"}, tc.args...)...)
				if r.status != usageStatus || !strings.Contains(r.stderr, tc.want) {
					t.Errorf("resize %v: status %d, %s; want %q", tc.args, r.status, r.stderr, tc.want)
				}
			}
			unchanged(t, img, before)
			s := serve(t, img)
			if r := vhdxfs(t, "resize", img, "300M"); r.status == 0 || !strings.Contains(r.stderr, "truncate -s") {
				t.Errorf("resize of a mounted image: status %d, %s", r.status, r.stderr)
			}
			s.end(t)
			for _, size := range []string{"+100M", "700G", "150M"} {
				t.Run(size, func(t *testing.T) {
					var r struct {
						After int64 `json:"disk_size_after"`
						Fits  bool  `json:"gpt_backup_at_end"`
					}
					if err := json.Unmarshal([]byte(mustVhdxfs(t, "resize", "--json", "--fix-gpt", img, size)), &r); err != nil {
						t.Fatal(err)
					}
					if got := info(t, img).DiskSize; got != r.After || !r.Fits {
						t.Errorf("after resize to %s the disk has %d bytes; the command says %+v", size, got, r)
					}
					checkClean(t, img)
					ro := readOnly(t, img)
					dev := attach(t, ro.disk, sector)
					if out := must(t, "sfdisk", "--verify", dev); !strings.Contains(out, "No errors detected") {
						t.Errorf("sfdisk of the disk resized to %s: %s", size, out)
					}
					inside := mountInside(t, partition(t, dev, 1, sector, mib/sector), "ext4")
					if got, want := withoutLostFound(readTree(t, inside)), readTree(t, tree); !maps.Equal(got, want) {
						t.Errorf("files after resize to %s:\n%v\nwant\n%v", size, got, want)
					}
				})
			}
			// A disk that grew without its GPT can go back to where that ends.
			mustVhdxfs(t, "resize", img, "400M")
			if r := vhdxfs(t, "resize", img, "149M"); r.status != usageStatus || !strings.Contains(r.stderr, "--fix-gpt moves it") {
				t.Errorf("below the backup of the GPT: status %d, %s", r.status, r.stderr)
			}
			mustVhdxfs(t, "resize", img, "150M")
			if out := mustVhdxfs(t, "resize", "--json", img, "150M"); !strings.Contains(out, `"gpt_backup_at_end": true`) {
				t.Errorf("after going back: %s", out)
			}
		})
	}
}

// Blocks that hold nothing are cut off, also where they have been written, and those of a fixed disk.
func TestResizeCutsZerosOff(t *testing.T) {
	t.Parallel()
	requireTools(t, "qemu-img")
	dir := t.TempDir()
	fixed, written := filepath.Join(dir, "fixed.vhdx"), filepath.Join(dir, "written.vhdx")
	must(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=fixed", fixed, "100M")
	mustVhdxfs(t, "create", "--size", "100M", "--type", "fixed", written)
	s := serve(t, written)
	writeAt(t, s.disk, make([]byte, 30*mib), 60*mib)
	s.end(t)
	for _, img := range []string{fixed, written} {
		mustVhdxfs(t, "resize", img, "150M")
		mustVhdxfs(t, "resize", img, "50M")
		checkClean(t, img)
	}
}

// What nothing is known of is not cut off, unless it is forced; then the space is given up. QEMU has the same image.
func TestResizeUnknown(t *testing.T) {
	t.Parallel()
	requireTools(t, "qemu-img")
	img := create(t, "100MiB", "--block-size", "1MiB")
	s := serve(t, img)
	writeAt(t, s.disk, fill(7), 3*mib)
	writeAt(t, s.disk, fill(8), 70*mib)
	s.end(t)
	before := sha256File(t, img)
	if r := vhdxfs(t, "resize", img, "50M"); r.status != usageStatus || !strings.Contains(r.stderr, "data at 0x4600000") {
		t.Errorf("status %d, %s", r.status, r.stderr)
	}
	unchanged(t, img, before)
	mustVhdxfs(t, "resize", "--force", img, "50M")
	checkClean(t, img)
	mustVhdxfs(t, "resize", img, "100M")
	checkClean(t, img)
	raw := qemuRaw(t, img)
	if got := readAt(t, raw, 3*mib, mib); string(got) != string(fill(7)) {
		t.Error("what the smaller disk had is gone")
	}
	if got := readAt(t, raw, 50*mib, 50*mib); !bytes.Equal(got, make([]byte, 50*mib)) {
		t.Error("what was cut off came back")
	}
	if st, err := os.Stat(img); err != nil || st.Size() > 8*mib {
		t.Errorf("the file has %d bytes", st.Size())
	}
}

// A disk grows while a file system on it is mounted and written; the loop device is told, and then the file system takes
// the new space.
func TestGrowMounted(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	requireLoop(t)
	requireKernelFS(t, "ext4")
	requireTools(t, "mkfs.ext4", "resize2fs")
	img := create(t, "64MiB", "--block-size", "1MiB")
	s := serve(t, img)
	dev := strings.TrimSpace(must(t, "losetup", "--find", "--show", s.disk))
	t.Cleanup(func() { must(t, "losetup", "--detach", dev) })
	must(t, "mkfs.ext4", "-q", dev)
	inside := newDir(t)
	must(t, "mount", dev, inside)
	mounted := true
	t.Cleanup(func() {
		if mounted {
			unmount(t, inside)
		}
	})
	stop, end := make(chan struct{}), make(chan int, 1)
	go func() { // who goes on to write meanwhile
		n := 0
		defer func() { end <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := os.WriteFile(filepath.Join(inside, strconv.Itoa(n%20)), fill(byte(n)), 0o600); err != nil {
				t.Errorf("write %d: %v", n, err)
				return
			}
			n++
		}
	}()
	written := sync.OnceValue(func() int { close(stop); return <-end })
	t.Cleanup(func() { written() })
	for _, size := range []string{"96M", "+32M", "140G"} { // the last one moves the block table
		must(t, "truncate", "--size", size, s.disk)
		must(t, "losetup", "--set-capacity", dev)
	}
	n := written()
	for i := max(0, n-20); i < n; i++ {
		if b, err := os.ReadFile(filepath.Join(inside, strconv.Itoa(i%20))); err != nil || string(b) != string(fill(byte(i))) {
			t.Errorf("file %d reads otherwise: %v", i%20, err)
		}
	}
	unmount(t, inside)
	mounted = false
	for _, args := range [][]string{{"e2fsck", "-fn", dev}, {"e2fsck", "-fp", dev}, {"resize2fs", dev, "1G"}, {"e2fsck", "-fn", dev}} {
		must(t, args[0], args[1:]...) // without the mount, since resize2fs of a mounted one needs CAP_SYS_RESOURCE
	}
	if st, err := os.Stat(s.disk); err != nil || st.Size() != 140<<30 {
		t.Errorf("disk.raw has %d bytes, %v", st.Size(), err)
	}
	if err := os.Truncate(s.disk, 64*mib); err == nil {
		t.Error("the disk became smaller")
	}
}

// Of an image that is mounted, resize says what can be done, and that only where it can.
func TestResizeMounted(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	img, _ := diskWithGPT(t, 512)
	for _, tc := range []struct {
		options, want string
	}{
		{"rw", "enlarge it there with truncate -s"},
		{"ro", "mounted read-only on"},
		{"partition=1", "partition 1 is mounted on"},
	} {
		s := serve(t, img, "-o", tc.options)
		r := vhdxfs(t, "resize", img, "+64M")
		if r.status == 0 || !strings.Contains(r.stderr, tc.want) || !strings.Contains(r.stderr, "unmount it first") ||
			strings.Contains(r.stderr, "truncate") != (tc.options == "rw") {
			t.Errorf("%s: status %d, %s", tc.options, r.status, r.stderr)
		}
		s.end(t)
	}
}
