package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// snapshot makes one of an image or a mount, and returns the two files.
func snapshot(t *testing.T, args ...string) (r struct{ Frozen, Child string }) {
	t.Helper()
	if err := json.Unmarshal([]byte(mustVhdxfs(t, append([]string{"snapshot", "--json"}, args...)...)), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// imagesOf returns the names of all files in the directory of an image.
func imagesOf(t *testing.T, img string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(img))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// A file system on a loop device goes on while its disk is frozen, over and over. Each frozen image holds the disk as it
// was, the mount tells where it is now, and a merge makes one image of all.
func TestSnapshotOfAMount(t *testing.T) {
	detectRaces(t)
	requireTools(t, "mkfs.ext4", "fsfreeze", "qemu-img", "getfattr")
	requireLoop(t)
	requireFileSystem(t, "ext4")
	for _, keep := range []bool{false, true} {
		v := variantNamed(t, map[bool]string{false: "dynamic", true: "dynamic 4096"}[keep])
		t.Run(fmt.Sprintf("%s, keep name %v", v.name, keep), func(t *testing.T) {
			img := v.create(t, "64MiB")
			s := serve(t, img)
			l := attachRW(t, s.disk, v.sector)
			mkfs(t, "ext4", l.dev)
			inside := mountWritable(t, l.dev, "ext4")
			rng := rand.New(rand.NewPCG(7, 7))
			now := img
			disks := map[string]string{} // digests, by path
			var trees []map[string]string
			for i := range 3 {
				trees = append(trees, churn(t, filepath.Join(inside, mkdir(t, inside, i)), rng))
				args := []string{[]string{s.dir, now, l.dev}[i]}
				if keep {
					args = append([]string{"--keep-name"}, args...)
				}
				if i == 1 {
					args = append(args, "named.vhdx")
				}
				must(t, "fsfreeze", "--freeze", inside)
				before := sha256File(t, s.disk)
				r := snapshot(t, args...)
				must(t, "fsfreeze", "--unfreeze", inside)
				if keep && r.Child != now || !keep && r.Frozen != now || i == 1 && filepath.Base(r.Frozen) != "named.vhdx" && filepath.Base(r.Child) != "named.vhdx" {
					t.Errorf("%+v", r)
				}
				now = r.Child
				disks[r.Frozen] = before
				if out := must(t, "getfattr", "--absolute-names", "--only-values", "-n", "user.vhdx.path", s.disk); out != now {
					t.Errorf("the mount says that its image is %s, not %s", out, now)
				}
				if out := mustVhdxfs(t, "list"); !strings.Contains(out, now+" ") || !strings.Contains(out, "mounted at "+s.dir) {
					t.Errorf("list, without %s:\n%s", now, out)
				}
				refusedBy(t, s.cmd.Process.Pid, now, "flatten", now, filepath.Join(t.TempDir(), "out.vhdx"))
				refusedBy(t, s.cmd.Process.Pid, r.Frozen, "compact", r.Frozen)
				mustVhdxfs(t, "info", r.Frozen)
			}
			for i, tree := range trees {
				sameTree(t, "while the disk is in use", filepath.Join(inside, fmt.Sprint(i)), tree)
			}
			must(t, "umount", inside)
			last := sha256File(t, s.disk)
			l.detach(t)
			s.end(t)
			disks[now] = last
			for path, sum := range disks {
				checkClean(t, path)
				raw := filepath.Join(t.TempDir(), "raw")
				mustVhdxfs(t, "convert", path, raw)
				if sha256File(t, raw) != sum {
					t.Errorf("%s holds another disk", path)
				}
			}
			merge := []string{"merge", "--delete", "--into", chainOf(t, now)[0]}
			if keep {
				merge = append(merge, "--keep-name")
			}
			mustVhdxfs(t, append(merge, now)...)
			if names := imagesOf(t, img); len(names) != 1 || names[0] != filepath.Base(img) {
				t.Errorf("left are %v", names)
			}
			again := readOnly(t, img)
			if sha256File(t, again.disk) != last {
				t.Error("the merged image holds another disk")
			}
		})
	}
}

// mkdir makes a directory with a number as its name.
func mkdir(t *testing.T, dir string, i int) string {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, fmt.Sprint(i)), 0o700); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(i)
}

// chainOf returns the paths of the chain that there is in a directory, or of an image: the one without a parent first.
func chainOf(t *testing.T, path string) (paths []string) {
	t.Helper()
	type link struct {
		Path     string
		Children []link
	}
	var links []link
	r := vhdxfs(t, "chain", "--json", path)
	if err := json.Unmarshal([]byte(r.stdout), &links); err != nil {
		t.Fatalf("%v: %s%s", err, r.stdout, r.stderr)
	}
	for len(links) == 1 {
		paths = append(paths, links[0].Path)
		links = links[0].Children
	}
	if len(paths) == 0 || len(links) > 0 {
		t.Fatalf("%s holds more than one chain:\n%s", path, r.stdout)
	}
	return paths
}

// The program is killed while writers write and snapshots are made. Whenever that is, the newest image holds what was
// synced, whatever it is called: with --keep-name it has the name that it always had.
func TestSnapshotIsKilled(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	requireFUSE(t)
	requireTools(t, "fio")
	if os.Geteuid() != 0 {
		t.Skip("needs root, to unmount what is left behind")
	}
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprintf("keep name %v", keep), func(t *testing.T) {
			v := variantNamed(t, "dynamic")
			img := v.create(t, killedDisk())
			first := img
			writers := newKilledWriters(t, img, v.sector)
			rng := rand.New(rand.NewPCG(uint64(*kills), 13))
			made := 0
			for round := range *kills {
				s := serveToKill(t, img)
				args := []string{"snapshot", s.dir}
				if keep {
					args = append(args, "--keep-name")
				}
				mustVhdxfs(t, args...)
				stop := make(chan struct{})
				var snapshots sync.WaitGroup
				snapshots.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						if vhdxfs(t, args...).status == 0 { // or it is dead
							made++
						}
					}
				})
				acknowledged := runUntilKilled(t, s, writers, 20+rng.IntN(150), v.sector)
				close(stop)
				snapshots.Wait()
				if !keep {
					chain := chainOf(t, filepath.Dir(first))
					img = chain[len(chain)-1]
				}
				if r := vhdxfs(t, "check", img); r.status != 0 && r.status != warningsStatus {
					t.Fatalf("kill %d: vhdxfs check: exit status %d\n%s%s", round, r.status, r.stdout, r.stderr)
				}
				again := serve(t, img)
				for _, w := range writers {
					if err := w.verify(again.disk); err != nil {
						t.Fatalf("kill %d, %d acknowledged fsyncs, files %v: %v", round, acknowledged, imagesOf(t, img), err)
					}
				}
				again.end(t)
				checkClean(t, img)
				// A cut may leave the image a second name that is not used, or a child without a name, and nothing else.
				links := map[uint64]bool{}
				for _, path := range chainOf(t, img) {
					links[stat(t, path).Ino] = true
				}
				if chain := chainOf(t, img); len(chain) > 1 {
					args := []string{"merge", "--delete", "--into", chain[0], img}
					if keep {
						args = append(args, "--keep-name")
					}
					mustVhdxfs(t, args...)
				}
				if !keep {
					img = first
				}
				for _, name := range imagesOf(t, img) {
					if path := filepath.Join(filepath.Dir(img), name); path != img {
						if unnamed := strings.HasPrefix(name, ".") && strings.HasSuffix(name, ".part"); !unnamed && !links[stat(t, path).Ino] {
							t.Errorf("kill %d: left behind: %s", round, name)
						}
						must(t, "rm", path)
					}
				}
			}
			t.Logf("killed %d times, with %d snapshots under way", *kills, made)
		})
	}
}

// What fails leaves a mount that goes on, and no file: a full disk, a directory that cannot be written, a file that is there.
func TestSnapshotOfAMountFails(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	dir := smallFS(t, "tmpfs", "44")
	img := filepath.Join(dir, "img.vhdx")
	mustVhdxfs(t, "create", "--size", "64MiB", "--block-size", "1MiB", img)
	s := serve(t, img)
	writeAt(t, s.disk, fill(1), 0)
	ballast := filepath.Join(dir, "ballast")
	must(t, "sync", s.disk)
	if out, err := command("dd", "if=/dev/zero", "of="+ballast, "bs=4k"); err == nil {
		t.Fatalf("the file system is not full: %s", out)
	}
	for _, tc := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{s.dir}, 2, "no space left"},
		{[]string{"--keep-name", img}, 2, "no space left"},
		{[]string{s.dir, "ballast"}, usageStatus, "exists"},
		{[]string{"--keep-name", s.dir, "ballast"}, usageStatus, "exists"},
		{[]string{"--keep-name", s.dir, filepath.Join(t.TempDir(), "x.vhdx")}, usageStatus, "in its directory"},
		{[]string{"-o", "lock=off", s.dir}, usageStatus, "omit -o"},
	} {
		r := vhdxfs(t, append([]string{"snapshot"}, tc.args...)...)
		if r.status != tc.status || !strings.Contains(r.stderr, tc.want) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%v: exit status %d, %q", tc.args, r.status, r.stderr)
		}
		if names := fmt.Sprint(imagesOf(t, img)); names != "[ballast img.vhdx]" {
			t.Errorf("%v: the directory holds %s", tc.args, names)
		}
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	writeAt(t, s.disk, fill(2), mib)
	must(t, "sync", s.disk)
	if r := snapshot(t, "--keep-name", img); r.Child != img {
		t.Errorf("%+v", r)
	}
	writeAt(t, s.disk, fill(3), 2*mib)
	for i := range int64(3) {
		if got := readAt(t, s.disk, i*mib, mib); string(got) != string(fill(byte(i+1))) {
			t.Errorf("MiB %d reads otherwise", i)
		}
	}
	s.end(t)
	checkClean(t, img)
	ro := readOnly(t, img)
	if r := vhdxfs(t, "snapshot", ro.dir); r.status != usageStatus || !strings.Contains(r.stderr, "read-only") {
		t.Errorf("of a read-only mount: exit status %d, %q", r.status, r.stderr)
	}
}

// Many ask for a snapshot at one moment: each learns what became of his own, however soon another follows.
func TestSnapshotsAtOnce(t *testing.T) {
	detectRaces(t)
	t.Parallel()
	img := create(t, "16MiB")
	s := serve(t, img)
	var asking sync.WaitGroup
	var mu sync.Mutex // guards made
	made := map[string]bool{}
	for range 4 {
		asking.Go(func() {
			for range 4 {
				r := vhdxfs(t, "snapshot", s.dir)
				child, _, _ := strings.Cut(r.stdout, " is now the active image")
				mu.Lock()
				switch {
				case r.status == 0 && !made[child]:
					made[child] = true
				case r.status == 2 && strings.Contains(r.stderr, "is already running"):
				default:
					t.Errorf("status %d, %s%s", r.status, r.stdout, r.stderr)
				}
				mu.Unlock()
			}
		})
	}
	asking.Wait()
	names := imagesOf(t, img)
	if len(made) == 0 || len(names) != len(made)+1 {
		t.Errorf("%d snapshots were told of, and there are the files %q", len(made), names)
	}
	for child := range made {
		if _, err := os.Stat(child); err != nil {
			t.Error(err)
		}
	}
}

// An image that was mounted by itself into a directory gets no child there, which would be beside something else.
func TestSnapshotOfAMountedFile(t *testing.T) {
	requireFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount")
	}
	made := create(t, "16MiB")
	img := filepath.Join(newDir(t), "img.vhdx")
	must(t, "touch", img)
	must(t, "mount", "--bind", made, img)
	t.Cleanup(func() { unmount(t, img) })
	refuses := func() {
		t.Helper()
		for _, args := range [][]string{{img}, {"--keep-name", img}} {
			if r := vhdxfs(t, append([]string{"snapshot"}, args...)...); r.status != usageStatus || !strings.Contains(r.stderr, "a mount of its own") {
				t.Errorf("%v: exit status %d, %q", args, r.status, r.stderr)
			}
		}
		if names := imagesOf(t, img); len(names) != 1 {
			t.Errorf("the directory holds %v", names)
		}
	}
	refuses()
	s := serve(t, img)
	writeAt(t, s.disk, fill(1), 0)
	refuses()
	writeAt(t, s.disk, fill(2), 0)
	s.end(t)
	checkClean(t, img)
}

// Only root and who has mounted it may freeze a disk. A program that may make no files in the directory says so, and goes on.
func TestSnapshotByOthers(t *testing.T) {
	requireFUSE(t)
	requireTools(t, "setfattr", "fusermount3")
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be another user")
	}
	img := create(t, "16MiB")
	dir := newDir(t)
	must(t, "chown", nobody, img, dir)
	must(t, "chmod", "755", root, filepath.Dir(filepath.Dir(img)), filepath.Dir(img), filepath.Dir(dir))
	refuses := func(want string, args ...string) {
		t.Helper()
		if out, err := command(args[0], args[1:]...); err == nil || !strings.Contains(out, want) {
			t.Errorf("%v: %v %s", args, err, out)
		}
		if names := imagesOf(t, img); len(names) != 1 {
			t.Errorf("the directory holds %v", names)
		}
	}
	s := serve(t, img, "-o", "allow_other,umask=0")
	must(t, "chmod", "755", filepath.Dir(s.dir))
	refuses("not permitted", asNobody("setfattr", "-n", "user.vhdx.snapshot", "-v", `{"id":"x"}`, s.disk)...)
	refuses("only root and the owner of the mount", asNobody(program.path(t), "snapshot", s.dir)...)
	refuses("Invalid", "setfattr", "-n", "user.vhdx.snapshot", "-v", "now", s.dir)
	s.end(t)

	mount := asNobody(program.path(t), img, dir)
	must(t, mount[0], mount[1:]...)
	t.Cleanup(func() { unmount(t, dir) })
	refuses("permission denied", asNobody(program.path(t), "snapshot", dir)...)
	refuses("permission denied", asNobody(program.path(t), "snapshot", "--keep-name", img)...)
	write := asNobody("dd", "if=/dev/zero", "of="+filepath.Join(dir, "disk.raw"), "bs=1M", "count=1", "conv=notrunc,fsync", "status=none")
	must(t, write[0], write[1:]...)
}

// A snapshot of an image that has a child already would begin a second branch: it says so, and wants that to be said.
func TestSnapshotOfParent(t *testing.T) {
	t.Parallel()
	img := create(t, "16M")
	first, second := filepath.Join(filepath.Dir(img), "one.avhdx"), filepath.Join(filepath.Dir(img), "two.avhdx")
	mustVhdxfs(t, "snapshot", img, first)
	refused := func(args ...string) {
		t.Helper()
		r := vhdxfs(t, append([]string{"snapshot"}, args...)...)
		if r.status != usageStatus || !strings.Contains(r.stderr, "already has a child: "+first) || !strings.Contains(r.stderr, "--branch") {
			t.Errorf("exit status %d, %q", r.status, r.stderr)
		}
		if names := fmt.Sprint(imagesOf(t, img)); names != "[disk.vhdx one.avhdx]" {
			t.Errorf("the directory holds %s", names)
		}
	}
	refused(img, second)
	s := serve(t, img, "-o", "orphan_children")
	refused(s.dir)
	must(t, "umount", s.dir)
	s.wait(t)
	mustVhdxfs(t, "snapshot", "--branch", img, second)
	mustVhdxfs(t, "check", first)
	mustVhdxfs(t, "check", second)
	mustVhdxfs(t, "snapshot", second) // which has none
}
