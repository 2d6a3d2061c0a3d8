package test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// loose makes an image of the kind whose file holds blocks of data, of zeros, and trimmed ones, in no order.
func loose(t *testing.T, v variant) (img string) {
	t.Helper()
	img = v.create(t, "256MiB")
	s := serve(t, img, "-o", "discard=unmap")
	f := openDisk(t, s.disk, 0)
	rng := rand.New(rand.NewPCG(1, 11))
	for _, b := range rng.Perm(60) {
		versions := [][]byte{fill(byte(b + 1))}
		if b%3 == 0 {
			versions = append(versions, make([]byte, mib)) // zeros over what was there
		}
		for _, p := range versions {
			for part := range int64(2) { // whole blocks, of 1 MiB or of 2
				if _, err := f.WriteAt(p, int64(b)*2*mib+part*mib); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	must(t, "fallocate", "--punch-hole", "--offset", "20MiB", "--length", "20MiB", s.disk)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s.end(t)
	return img
}

// reclaimable is what the JSON of info says of what can be won.
func reclaimable(t *testing.T, img string) int64 {
	t.Helper()
	var in struct {
		Reclaimable struct {
			Total int64 `json:"total_bytes"`
		} `json:"reclaimable"`
	}
	text := mustVhdxfs(t, "info", "--zeros", "--json", img)
	if err := json.Unmarshal([]byte(text), &in); err != nil {
		t.Fatal(err)
	}
	return in.Reclaimable.Total
}

// A compaction wins what info says, and changes nothing of the disk: of an image that nobody uses, and of a mount.
func TestCompact(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		for _, mounted := range []bool{false, true} {
			name := v.name
			if mounted {
				name += ", mounted"
			}
			t.Run(name, func(t *testing.T) {
				requireFUSE(t)
				img := loose(t, v)
				before, can := info(t, img), reclaimable(t, img)
				ro := readOnly(t, img)
				sum := sha256File(t, ro.disk)
				if r := vhdxfs(t, "compact", ro.dir); r.status != usageStatus || !strings.Contains(r.stderr, "read-only") {
					t.Errorf("compact of a read-only mount: status %d, %s", r.status, r.stderr)
				}
				ro.end(t)
				target := img
				if mounted {
					s := serve(t, img)
					defer s.end(t)
					target = s.dir
				}
				out := mustVhdxfs(t, "compact", "--json", target)
				var r map[string]int64
				if err := json.Unmarshal([]byte(out), &r); err != nil {
					t.Fatal(err)
				}
				st, err := os.Stat(img)
				if err != nil {
					t.Fatal(err)
				}
				if won := before.FileSize - st.Size(); won != can || r["file_size_before"] != before.FileSize || r["file_size_after"] != st.Size() {
					t.Errorf("%d bytes won, want %d; %v", won, can, r)
				}
				if v.name != "fixed" && r["zero_bytes"] == 0 {
					t.Errorf("no zeros were found: %v", r)
				}
				if mounted {
					if got := sha256File(t, filepath.Join(target, "disk.raw")); got != sum {
						t.Error("the disk reads otherwise in the mount")
					}
					unmount(t, target)
				}
				again := readOnly(t, img)
				if got := sha256File(t, again.disk); got != sum {
					t.Error("the disk reads otherwise")
				}
				again.end(t)
				checkClean(t, img)
				if g, w := info(t, img), before; g.Headers[g.CurrentHeader-1].DataWriteGUID != w.Headers[w.CurrentHeader-1].DataWriteGUID {
					t.Error("DataWriteGuid has changed, so children do not fit any more")
				}
			})
		}
	}
}

// What info says can be won is what is won also where not all that is free can be: between blocks that are larger than
// a gap, in images of QEMU, and where the block table has moved to the end of the file.
func TestCompactWinsWhatInfoSays(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	for _, tc := range []struct {
		name  string
		make  func(t *testing.T) string
		holes string // that are punched into the disk
		fixed bool
	}{
		{"a gap smaller than a block", func(t *testing.T) string { return qemuCreate(t, 64*mib, "subformat=dynamic,block_size=8M") }, "24MiB", false},
		{"blocks of 32 MiB", func(t *testing.T) string { return create(t, "200MiB", "--block-size", "32MiB") }, "96MiB", false},
		{"QEMU, fixed", func(t *testing.T) string { return qemuCreate(t, 60*mib+512, "subformat=fixed,block_size=1M") }, "8MiB", true},
		{"a child", func(t *testing.T) string {
			base := create(t, "100MiB", "--block-size", "2MiB")
			child := filepath.Join(filepath.Dir(base), "child.vhdx")
			mustVhdxfs(t, "create", "--parent", base, "--block-size", "2MiB", child)
			return child
		}, "30MiB", false},
	} {
		for _, grown := range []bool{false, true} {
			name := tc.name
			if grown && tc.fixed {
				continue
			}
			if grown {
				name += ", and the block table has moved"
			}
			t.Run(name, func(t *testing.T) {
				img := tc.make(t)
				s := serve(t, img, "-o", "discard=unmap")
				for i := range int64(50) {
					writeAt(t, s.disk, fill(byte(i)), i*mib+4096*(i%2))
				}
				if grown {
					must(t, "truncate", "--size", "5T", s.disk)
				}
				must(t, "fallocate", "--punch-hole", "--offset", "1MiB", "--length", tc.holes, s.disk)
				s.end(t)
				want := readHead(t, img)
				compactAsForetold(t, img)
				if readHead(t, img) != want {
					t.Error("the disk reads otherwise")
				}
				if grown { // its block table has a region for more
					mustVhdxfs(t, "resize", "--force", img, "80M")
					if won := compactAsForetold(t, img); won < mib {
						t.Errorf("%d bytes won of a block table for 5 TiB", won)
					}
					if readHead(t, img) != want {
						t.Error("the smaller disk reads otherwise")
					}
				}
				checkClean(t, img)
			})
		}
	}
}

// compactAsForetold compacts img, wins what info says of it before, and leaves nothing to be won.
func compactAsForetold(t *testing.T, img string) (won int64) {
	t.Helper()
	before, can := info(t, img), reclaimable(t, img)
	mustVhdxfs(t, "compact", "-q", img)
	won = before.FileSize - info(t, img).FileSize
	if won != can {
		t.Errorf("%d bytes won, want %d, of a file of %d", won, can, before.FileSize)
	}
	if can := reclaimable(t, img); can != 0 {
		t.Errorf("%d bytes could be won a second time", can)
	}
	return won
}

// readHead returns the first bytes of the disk in img, among which is all that the tests here write.
func readHead(t *testing.T, img string) string {
	t.Helper()
	s := readOnly(t, img)
	defer s.end(t)
	return string(readAt(t, s.disk, 0, 60*mib))
}

// Writers go on while their mount is compacted; then the program is killed in the middle. Whatever it was about, the
// image is sound, and holds what was synced.
func TestCompactIsKilled(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, to unmount what is left behind")
	}
	v := variants[0]
	img := loose(t, v)
	const first = 130 * mib // of what the writers have for themselves
	rng := rand.New(rand.NewPCG(2, 12))
	for range *kills {
		ro := readOnly(t, img)
		want := readAt(t, ro.disk, 0, first)
		ro.end(t)
		s := serveToKill(t, img)
		f := openDisk(t, s.disk, 0)
		var synced atomic.Int64
		var wg sync.WaitGroup
		enough := make(chan struct{})
		wg.Go(func() {
			defer close(enough)
			for i := range int64(3 + rng.IntN(20)) {
				if _, err := f.WriteAt(fill(byte(i+1)), first+i*mib); err != nil {
					t.Error(err)
					return
				}
				if err := f.Sync(); err != nil {
					t.Error(err)
					return
				}
				synced.Store(i + 1)
			}
		})
		compacting := exec.Command(program.path(t), "compact", "-q", s.dir)
		if err := compacting.Start(); err != nil {
			t.Fatal(err)
		}
		<-enough
		s.kill()
		wg.Wait()
		compacting.Wait() // it fails, or was done
		f.Close()
		if r := vhdxfs(t, "check", img); r.status != 0 && r.status != warningsStatus {
			t.Fatalf("vhdxfs check: exit status %d\n%s%s", r.status, r.stdout, r.stderr)
		}
		again := serve(t, img)
		sameStart(t, again.disk, want)
		for i := range synced.Load() {
			if got := readAt(t, again.disk, first+i*mib, mib); string(got) != string(fill(byte(i+1))) {
				t.Errorf("MiB %d of what was synced reads otherwise", i)
			}
		}
		again.end(t)
	}
	mustVhdxfs(t, "compact", img)
	checkClean(t, img)
}

// An interrupted compaction says so, leaves nothing half done, and can be run again.
func TestCompactIsInterrupted(t *testing.T) {
	t.Parallel()
	for _, mounted := range []bool{false, true} {
		img := loose(t, variants[0])
		ro := readOnly(t, img)
		sum := sha256File(t, ro.disk)
		ro.end(t)
		target := img
		if mounted {
			target = serve(t, img).dir
		}
		cmd := exec.Command(program.path(t), "compact", "-q", target)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmd.Process.Signal(syscall.SIGINT)
		cmd.Wait() // it may have been done before, or not have begun to listen
		if status := cmd.ProcessState.ExitCode(); status != 0 && status != 130 && status != -1 {
			t.Errorf("exit status %d", status)
		}
		if mounted {
			unmount(t, target)
		}
		eventually(t, "the image to be free", func() bool { return vhdxfs(t, "compact", img).status == 0 })
		again := readOnly(t, img)
		if got := sha256File(t, again.disk); got != sum {
			t.Error("the disk reads otherwise")
		}
		again.end(t)
		checkClean(t, img)
	}
}

// Who waits for a compaction is told that the mount has ended meanwhile.
func TestCompactMountEnds(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	requireFUSE(t)
	img := loose(t, variants[0])
	s := serve(t, img)
	var out bytes.Buffer
	cmd := exec.Command(program.path(t), "compact", "-q", s.dir)
	cmd.Stderr = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the compaction to begin", func() bool {
		_, err := command("getfattr", "-n", "user.vhdx.compact", s.disk)
		return err == nil
	})
	s.end(t)
	cmd.Wait() // it may have been done before
	switch status := cmd.ProcessState.ExitCode(); {
	case status == 0:
	case !strings.Contains(out.String(), "completed work is kept") && !strings.Contains(out.String(), "was stopped"):
		t.Errorf("status %d, %s", status, out.String())
	}
	checkClean(t, img)
	mustVhdxfs(t, "compact", "-q", img)
}

// Only root and who mounted may have a mount compacted; one that hangs does not hang the command.
func TestCompactRefuses(t *testing.T) {
	requireFUSE(t)
	img := create(t, "64MiB")
	s := serve(t, img, "-o", "allow_other")
	if os.Geteuid() == 0 {
		args := asNobody("setfattr", "-n", "user.vhdx.compact", "-v", "start", s.disk)
		if out, err := command(args[0], args[1:]...); err == nil {
			t.Errorf("another user may: %s", out)
		}
		must(t, "chmod", "755", root, filepath.Dir(filepath.Dir(s.dir)), filepath.Dir(s.dir))
		args = asNobody(program.path(t), "compact", s.dir)
		if out, err := command(args[0], args[1:]...); err == nil || !strings.Contains(out, "only root and the owner of the mount") {
			t.Errorf("compact by another user: %v, %s", err, out)
		}
	}
	if out, err := command("setfattr", "-n", "user.vhdx.compact", "-v", "faster", s.disk); err == nil {
		t.Errorf("a word that means nothing is taken: %s", out)
	}
	for _, command := range []string{"compact", "snapshot"} {
		if r := vhdxfs(t, command, filepath.Dir(s.dir)); r.status != usageStatus || !strings.Contains(r.stderr, "no VHDX image is mounted on this directory") {
			t.Errorf("%s of a directory without a mount: status %d, %s", command, r.status, r.stderr)
		}
	}
	s.end(t)
	release := qemuHolds(t, img)
	if r := vhdxfs(t, "compact", img); r.status == 0 || !strings.Contains(r.stderr, "another program has the image open: qemu-io") {
		t.Errorf("of an image that QEMU has: status %d, %s", r.status, r.stderr)
	}
	release()
}

// Blocks that hold little take as little space when they have moved.
func TestCompactStaysSparse(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img := create(t, "256MiB", "--block-size", "2MiB")
	s := serve(t, img)
	for i := range int64(100) {
		writeAt(t, s.disk, fill(byte(i + 1))[:4096], i*2*mib+i*4096)
	}
	must(t, "fallocate", "--punch-hole", "--offset", "0", "--length", "100MiB", s.disk)
	s.end(t)
	before := used(t, img)
	mustVhdxfs(t, "compact", "-q", img)
	if after := used(t, img); after > before {
		t.Errorf("the file took %d bytes, and takes %d", before, after)
	}
	checkClean(t, img)
}

// A compaction needs little space of its own, also where many blocks move and the file system has no more to give: each
// place that a block has left is space again. Without any, it says so, and nothing is lost.
func TestCompactOnAFullDisk(t *testing.T) {
	requireFUSE(t)
	dir := smallFS(t, "tmpfs", "64")
	made := create(t, "256MiB", "--block-size", "1MiB")
	img := filepath.Join(dir, "disk.vhdx")
	must(t, "cp", "--sparse=always", made, img)
	s := serve(t, img)
	for i := range int64(50) {
		writeAt(t, s.disk, fill(byte(i+1)), i*mib)
	}
	must(t, "fallocate", "--punch-hole", "--offset", "0", "--length", "25MiB", s.disk)
	want := readAt(t, s.disk, 0, 60*mib)
	s.end(t)
	before := reclaimable(t, img)
	ballast := openDisk(t, filepath.Join(dir, "ballast"), os.O_CREATE)
	for off := int64(0); ; off += mib { // all that is left
		if _, err := ballast.WriteAt(fill(1), off); err != nil {
			break
		}
	}
	for _, tc := range []struct {
		room   int64 // MiB
		status int
	}{{0, 2}, {3, 0}} {
		size := sizeOf(t, ballast)
		if err := ballast.Truncate(size - tc.room*mib); err != nil {
			t.Fatal(err)
		}
		r := vhdxfs(t, "compact", "-q", img)
		if r.status != tc.status {
			t.Errorf("with %d MiB free: status %d, %s", tc.room, r.status, r.stderr)
		}
		ro := readOnly(t, img)
		sameStart(t, ro.disk, want)
		ro.end(t)
		checkClean(t, img)
	}
	if after := reclaimable(t, img); before != 25*mib || after != 0 {
		t.Errorf("%d bytes could be won before, %d after", before, after)
	}
	ballast.Close()
}
