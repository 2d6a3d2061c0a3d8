package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// reflinkFS mounts a file system whose files can share extents.
func reflinkFS(t *testing.T, fstype string) string {
	t.Helper()
	dir := smallFS(t, fstype, "320") // xfs has no smaller ones
	from := filepath.Join(dir, "from")
	if err := os.WriteFile(from, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := command("cp", "--reflink=always", from, filepath.Join(dir, "to")); err != nil {
		t.Skipf("this %s shares no extents: %s", fstype, out)
	}
	return dir
}

// sharedDisk makes a raw disk in dir with 20 MiB of data that lie together, and smaller pieces at odd places.
func sharedDisk(t *testing.T, dir string) string {
	t.Helper()
	raw := filepath.Join(dir, "disk.raw")
	must(t, "truncate", "--size", strconv.Itoa(48*mib+3*512+100), raw)
	rng := rand.New(rand.NewPCG(9, 9))
	for off, n := range map[int64]int{0: 5, mib - 12288: 20*mib + 5000, 30*mib + 700: 90_000, 33 * mib: 4096, 33*mib + 8192: 4096, 40*mib + 8192: 3 * mib, 48*mib + 1000: 600} {
		writeAt(t, raw, randomBytes(rng, n), off)
	}
	must(t, "sync", "--file-system", dir)
	return raw
}

// copied runs a command that copies a disk, and returns how many bytes the output shares.
func copied(t *testing.T, args ...string) int64 {
	t.Helper()
	var r struct {
		Shared int64 `json:"shared_bytes"`
		Data   int64 `json:"data_bytes"`
	}
	out := mustVhdxfs(t, append([]string{args[0], "--json"}, args[1:]...)...)
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Shared > r.Data || r.Data < 23*mib {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return r.Shared
}

// freeBytes returns how much space the file system has.
func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	must(t, "sync", "--file-system", dir)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bfree) * st.Bsize
}

// Where files can share extents, a copy of a disk shares its data, holds the same bytes, and takes no space of its own.
func TestReflink(t *testing.T) {
	t.Parallel()
	for _, fstype := range []string{"xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) { reflink(t, reflinkFS(t, fstype), fstype) })
	}
}

func reflink(t *testing.T, dir, fstype string) {
	raw := sharedDisk(t, dir)
	before, free := sha256File(t, raw), freeBytes(t, dir)
	at := func(name string) string { return filepath.Join(dir, name) }
	if fstype == "btrfs" {
		must(t, "btrfs", "subvolume", "create", at("sub"))
	} else if err := os.Mkdir(at("sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	const most, none = 23 * mib, 0
	for _, tc := range []struct {
		args   []string // of which the last is the output
		shared int64    // at least
	}{
		{[]string{"convert", raw, at("a.vhdx")}, most},
		{[]string{"convert", "--verify", at("a.vhdx"), at("b.raw")}, most},
		{[]string{"convert", "--verify", "--reflink=always", at("b.raw"), at("c.raw")}, most},
		{[]string{"convert", "--block-size", "32M", "--workers", "1", "--reflink", at("a.vhdx"), at("d.vhdx")}, most},
		{[]string{"convert", "--verify", "--block-size", "1M", at("d.vhdx"), at("sub/e.vhdx")}, most},
		{[]string{"create", "--reflink=always", "--from", raw, at("f.vhdx")}, most},
		{[]string{"convert", "--reflink=always", "--verify", "--type", "fixed", raw, at("g.vhdx")}, most},
		{[]string{"convert", "--verify", at("g.vhdx"), at("h.raw")}, most},
		{[]string{"flatten", "--force", at("d.vhdx"), at("a.vhdx")}, most},
		{[]string{"convert", "--type", "fixed", raw, at("own.vhdx")}, none},
		{[]string{"convert", "--reflink=never", at("a.vhdx"), at("never.raw")}, none},
		{[]string{"convert", "--skip-errors", at("a.vhdx"), at("rescued.raw")}, none},
	} {
		out := tc.args[len(tc.args)-1]
		if got := copied(t, tc.args...); got < tc.shared || tc.shared == none && got > 0 {
			t.Errorf("%v: %d bytes are shared, want at least %d", tc.args, got, tc.shared)
		}
		if filepath.Ext(out) == ".vhdx" {
			checkClean(t, out)
		}
		mustVhdxfs(t, "compare", raw, out)
		// A fixed image has space of its own where it holds nothing.
		if used := free - freeBytes(t, dir); tc.shared == most && filepath.Base(out) != "g.vhdx" && used > 8*mib {
			t.Errorf("%v: %d bytes of space are gone", tc.args, used)
		}
		if tc.shared == none {
			if err := os.Remove(out); err != nil {
				t.Fatal(err)
			}
		}
		free = freeBytes(t, dir)
	}

	// What is written to a copy is not in the others.
	s := serve(t, at("a.vhdx"))
	f := openDisk(t, s.disk, 0)
	writePattern(t, f, 0x77, 5*mib+512, 3*mib)
	f.Close()
	s.end(t)
	checkClean(t, at("a.vhdx"))
	mustVhdxfs(t, "compare", raw, at("d.vhdx"))

	// A chain, with blocks that are there in part.
	mustVhdxfs(t, "create", "--parent", at("d.vhdx"), at("child.vhdx"))
	s = serve(t, at("child.vhdx"))
	f = openDisk(t, s.disk, 0)
	writePattern(t, f, 0x55, 3*mib+512, 5*mib)
	writePattern(t, f, 0x56, 12*mib, 512)
	writePattern(t, f, 0x57, 13*mib, 100_000)
	f.Close()
	s.end(t)
	if got := copied(t, "flatten", "--verify", at("child.vhdx"), at("flat.vhdx")); got < most-mib {
		t.Errorf("%d bytes of a chain are shared", got)
	}
	checkClean(t, at("flat.vhdx"))
	mustVhdxfs(t, "compare", "--strict", at("child.vhdx"), at("flat.vhdx"))
	unchanged(t, raw, before)

	// A merge shares what the child holds, takes no space, and leaves nothing shared where the child goes.
	mustVhdxfs(t, "convert", "--reflink=never", at("child.vhdx"), at("merged.raw"))
	free = freeBytes(t, dir)
	var merged struct {
		Shared int64 `json:"shared_bytes"`
		Data   int64 `json:"data_bytes"`
	}
	out := mustVhdxfs(t, "merge", "--json", "--delete", at("child.vhdx"))
	if err := json.Unmarshal([]byte(out), &merged); err != nil || merged.Shared < 5*mib || merged.Shared > merged.Data {
		t.Errorf("%v: %s", err, out)
	}
	if used := free - freeBytes(t, dir); used > 3*mib { // the file system has something to note of what is shared
		t.Errorf("the merge took %d bytes of space", used)
	}
	checkClean(t, at("d.vhdx"))
	mustVhdxfs(t, "compare", at("merged.raw"), at("d.vhdx"))

	// Not across file systems.
	elsewhere := filepath.Join(smallFS(t, "tmpfs", "64"), "out.vhdx")
	if got := copied(t, "convert", raw, elsewhere); got != 0 {
		t.Errorf("%d bytes are shared across file systems", got)
	}
	mustVhdxfs(t, "compare", raw, elsewhere)
	r := vhdxfs(t, "convert", "--force", "--reflink=always", raw, elsewhere)
	if r.status == 0 || !strings.Contains(r.stderr, "cannot share") {
		t.Errorf("exit status %d: %s", r.status, r.stderr)
	}
	mustVhdxfs(t, "compare", raw, elsewhere) // it is still there
}

// On XFS, blocks move without a copy when an image is compacted, mounted or not, and the sandbox lets them.
func TestCompactMovesByReflink(t *testing.T) {
	t.Parallel()
	for _, mounted := range []bool{false, true} {
		t.Run(fmt.Sprintf("mounted %v", mounted), func(t *testing.T) {
			dir := reflinkFS(t, "xfs")
			img, raw := filepath.Join(dir, "disk.vhdx"), filepath.Join(dir, "disk.raw")
			must(t, "dd", "if=/dev/urandom", "of="+raw, "bs=1M", "count=32", "status=none")
			mustVhdxfs(t, "convert", "--reflink=never", "--block-size", "1M", raw, img)
			must(t, "dd", "if=/dev/zero", "of="+raw, "bs=1M", "count=16", "conv=notrunc", "status=none")
			s := serve(t, img)
			must(t, "fallocate", "--punch-hole", "--offset", "0", "--length", "16MiB", s.disk)
			if !mounted {
				s.end(t)
			}
			must(t, "sync", "--file-system", dir)
			before := places(t, img)
			if out := mustVhdxfs(t, "compact", img); !strings.Contains(out, "16 MiB") {
				t.Logf("compact: %s", out)
			}
			if mounted {
				s.end(t)
			}
			checkClean(t, img)
			mustVhdxfs(t, "compare", raw, img)
			must(t, "sync", "--file-system", dir)
			if size := stat(t, img).Size; size > 24*mib {
				t.Errorf("the file has %d bytes", size)
			}
			stayed := 0
			for at := range places(t, img) {
				if before[at] {
					stayed++
				}
			}
			if stayed < 16*mib/4096 {
				t.Errorf("%d blocks of the host are where they were, want those of 16 MiB", stayed)
			}
		})
	}
}

// places returns the numbers of the host's blocks of 4 KiB that a file has.
func places(t *testing.T, path string) map[int64]bool {
	t.Helper()
	all := map[int64]bool{}
	for line := range strings.Lines(must(t, "filefrag", "-v", "-b4096", path)) {
		var n, from, to, first, last int64
		if _, err := fmt.Sscanf(line, "%d: %d.. %d: %d.. %d:", &n, &from, &to, &first, &last); err == nil {
			for b := first; b <= last; b++ {
				all[b] = true
			}
		}
	}
	return all
}

// A write to what is shared needs space. Without any, the writer is told so, and what was there stays; with space again, it
// goes on.
func TestNoSpaceToWriteWhatIsShared(t *testing.T) {
	t.Parallel()
	for _, fstype := range []string{"xfs", "btrfs"} {
		t.Run(fstype, func(t *testing.T) { noSpaceForShared(t, reflinkFS(t, fstype)) })
	}
}

func noSpaceForShared(t *testing.T, dir string) {
	raw, img, ballast := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.vhdx"), filepath.Join(dir, "ballast")
	must(t, "dd", "if=/dev/urandom", "of="+raw, "bs=1M", "count=64", "status=none")
	mustVhdxfs(t, "convert", "--reflink=always", "--block-size", "1M", raw, img)
	before, want := sha256File(t, raw), readAt(t, raw, 0, 64*mib)
	s := serve(t, img)
	f := openDisk(t, s.disk, 0)
	for _, unit := range []string{"bs=1M", "bs=4k"} { // until nothing fits
		command("dd", "if=/dev/zero", "of="+ballast, unit, "oflag=append", "conv=notrunc,fsync", "status=none")
	}
	if err := os.Truncate(ballast, stat(t, ballast).Size-8*mib); err != nil {
		t.Fatal(err)
	}
	written := int64(0)
	var err error
	for ; written < int64(len(want)); written += mib {
		if _, err = f.WriteAt(fill(9), written); err != nil {
			break
		}
		copy(want[written:], fill(9))
		if err = f.Sync(); err != nil {
			t.Fatalf("sync of what was written, after %d MiB: %v", written/mib, err)
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("after %d MiB: %v, want ENOSPC", written/mib, err)
	}
	// A part of the write that failed may be there, as of each.
	got := readAt(t, s.disk, written, mib)
	for i := 0; i < mib; i += 4096 {
		if sector := string(got[i : i+4096]); sector != string(want[int(written)+i:][:4096]) && sector != string(fill(9)[:4096]) {
			t.Fatalf("the sector at %d of the write that failed is neither old nor new", i)
		}
	}
	copy(want[written:], got)
	if err := f.Sync(); err != nil {
		t.Errorf("sync on a full disk: %v", err)
	}
	sameStart(t, s.disk, want)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	must(t, "sync", "--file-system", dir)
	for off := written; off < written+10*mib; off += mib {
		if _, err := f.WriteAt(fill(7), off); err != nil {
			t.Fatalf("with space again, write at %d: %v", off, err)
		}
		copy(want[off:], fill(7))
	}
	if err := f.Sync(); err != nil {
		t.Errorf("with space again: %v", err)
	}
	f.Close()
	s.end(t)
	checkClean(t, img)
	sameStart(t, serve(t, img).disk, want)
	unchanged(t, raw, before)
}
