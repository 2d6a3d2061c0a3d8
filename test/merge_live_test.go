package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// A merged is what the JSON of a merge says.
type merged struct {
	Merged     []string
	Into, Path string
	Data       int64 `json:"data_bytes"`
}

func merge(t *testing.T, args ...string) (r merged) {
	t.Helper()
	if err := json.Unmarshal([]byte(mustVhdxfs(t, append([]string{"merge", "--json"}, args...)...)), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// writeAlways writes blocks of random data and trims some, anywhere on the disk, until stop is closed, and fails the test where
// it does not read what it wrote. It returns the disk as it must be then.
func writeAlways(t *testing.T, disk string, size int64, seed uint64, stop <-chan struct{}) (want []byte) {
	t.Helper()
	f := openDisk(t, disk, 0)
	defer f.Close()
	want = readAt(t, disk, 0, int(size))
	rng := rand.New(rand.NewPCG(seed, 3))
	for n := 0; ; n++ {
		select {
		case <-stop:
			return want
		default:
		}
		b := make([]byte, 512*(1+rng.IntN(100)))
		off := rng.Int64N(size-int64(len(b))) &^ 511
		if rng.IntN(5) > 0 {
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			if _, err := f.WriteAt(b, off); err != nil {
				t.Error(err)
				return want
			}
		} else if off &^= 4095; true {
			b = make([]byte, min(mib, size-off))
			if err := syscall.Fallocate(int(f.Fd()), 3, off, int64(len(b))); err != nil { // FALLOC_FL_PUNCH_HOLE | KEEP_SIZE
				t.Error(err)
				return want
			}
		}
		copy(want[off:], b)
		if n%7 == 0 {
			if err := f.Sync(); err != nil {
				t.Error(err)
				return want
			}
		}
		at := rng.Int64N(size-64<<10) &^ 511
		if got := readAt(t, disk, at, 64<<10); !bytes.Equal(got, want[at:at+64<<10]) {
			t.Errorf("after %d writes the disk reads otherwise at %#x", n, at)
			return want
		}
	}
}

// A disk is written and read while its chain is merged, over and over: the frozen images and the newest one.
func TestLiveMerge(t *testing.T) {
	detectRaces(t)
	requireFUSE(t)
	const size = 48 * mib
	rounds := 1
	if *long {
		rounds = 10
	}
	img := create(t, "48MiB", "--block-size", "1MiB")
	s := serve(t, img)
	stop, written := make(chan struct{}), make(chan []byte, 1)
	go func() { written <- writeAlways(t, s.disk, size, 1, stop) }()
	for range rounds {
		a := snapshot(t, "--keep-name", s.dir)
		b := snapshot(t, "--keep-name", s.dir)
		c := snapshot(t, "--keep-name", s.dir)
		d := snapshot(t, "--keep-name", s.dir)
		// Below the image, by the path of a frozen one.
		if r := merge(t, "--delete", c.Frozen); r.Into != b.Frozen || !slices.Equal(r.Merged, []string{c.Frozen}) {
			t.Errorf("%+v", r)
		}
		if r := merge(t, "--keep-name", b.Frozen); r.Into != a.Frozen || r.Path != b.Frozen {
			t.Errorf("%+v", r)
		}
		if got, want := chainOf(t, s.dir), []string{b.Frozen, d.Frozen, img}; !slices.Equal(got, want) {
			t.Fatalf("the chain is %q, want %q", got, want)
		}
		if r := merge(t, "--dry-run", s.dir); r.Into != d.Frozen {
			t.Errorf("%+v", r)
		}
		// The image itself, and what is between.
		if r := merge(t, "--keep-name", "--delete", "--into", b.Frozen, s.dir); r.Path != img || len(r.Merged) != 2 {
			t.Errorf("%+v", r)
		}
		if names := imagesOf(t, img); len(names) != 1 {
			t.Fatalf("left are %q", names)
		}
	}
	// Without its name, the mount goes on in the parent.
	e := snapshot(t, s.dir)
	if out := mustVhdxfs(t, "merge", "--delete", s.dir); !strings.Contains(out, img+" is now the active image of the mount") {
		t.Errorf("%s", out)
	}
	if out := mustVhdxfs(t, "list"); !strings.Contains(out, img) || strings.Contains(out, e.Child) {
		t.Errorf("list:\n%s", out)
	}
	close(stop)
	want := <-written
	if !bytes.Equal(readAt(t, s.disk, 0, size), want) {
		t.Error("the disk reads otherwise")
	}
	s.end(t)
	checkClean(t, img)
	again := readOnly(t, img)
	if !bytes.Equal(readAt(t, again.disk, 0, size), want) {
		t.Error("the image holds another disk")
	}
}

// The program is killed while writers write, and snapshots are made and merged. Whenever that is, the image by its name shows what
// was synced, and the merge can be run again.
func TestLiveMergeIsKilled(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "fio")
	if os.Geteuid() != 0 {
		t.Skip("needs root, to unmount what is left behind")
	}
	v := variantNamed(t, "dynamic")
	img := v.create(t, killedDisk())
	writers := newKilledWriters(t, img, v.sector)
	rng := rand.New(rand.NewPCG(uint64(*kills), 17))
	made, done := 0, 0
	for round := range *kills {
		s := serveToKill(t, img)
		stop := make(chan struct{})
		var merging sync.WaitGroup
		merging.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				r := vhdxfs(t, "snapshot", "--keep-name", "--json", s.dir)
				var files struct{ Frozen string }
				if r.status != 0 || json.Unmarshal([]byte(r.stdout), &files) != nil {
					continue // it is dead
				}
				made++
				args := []string{"merge", "--delete", files.Frozen} // which has a parent from the second on
				if i%3 == 2 {
					args = []string{"merge", "--keep-name", "--delete", s.dir}
				}
				if vhdxfs(t, args...).status == 0 {
					done++
				}
			}
		})
		acknowledged := runUntilKilled(t, s, writers, 20+rng.IntN(300), v.sector)
		close(stop)
		merging.Wait()
		if r := vhdxfs(t, "check", img); r.status != 0 && r.status != warningsStatus {
			t.Fatalf("kill %d: vhdxfs check: exit status %d\n%s%s", round, r.status, r.stdout, r.stderr)
		}
		again := serve(t, img)
		verify := func(when string) {
			t.Helper()
			for _, w := range writers {
				if err := w.verify(again.disk); err != nil {
					t.Fatalf("kill %d, %s, %d acknowledged fsyncs, files %v: %v", round, when, acknowledged, imagesOf(t, img), err)
				}
			}
		}
		verify("mounted again")
		if chain := chainOf(t, again.dir); len(chain) > 1 {
			mustVhdxfs(t, "merge", "--keep-name", "--delete", "--into", chain[0], again.dir)
			verify("merged")
		}
		again.end(t)
		checkClean(t, img)
		for _, name := range imagesOf(t, img) {
			if path := filepath.Join(filepath.Dir(img), name); path != img {
				must(t, "rm", path) // one that is merged, or its second name
			}
		}
	}
	t.Logf("killed %d times, with %d snapshots, %d merged", *kills, made, done)
}

// What is not possible is refused with a sentence, and the mount goes on.
func TestLiveMergeRefused(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	base, child, raw := writtenChild(t, "64MiB", 20*mib)
	dir := filepath.Dir(base)
	refused := func(status int, want string, args ...string) {
		t.Helper()
		r := vhdxfs(t, append([]string{"merge"}, args...)...)
		if r.status != status || !strings.Contains(r.stderr, want) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%v: exit status %d, %q", args, r.status, r.stderr)
		}
	}
	ro := readOnly(t, child)
	refused(usageStatus, "read-only", ro.dir)
	ro.end(t)
	over := serve(t, child, "-o", "overlay=tmp")
	refused(usageStatus, "overlay=", over.dir)
	over.end(t)

	s := serve(t, child)
	refused(usageStatus, "omit -o", "-o", "lock=off", s.dir)
	refused(usageStatus, "has no parent", base)
	refused(usageStatus, "is not a parent of", "--into", raw, s.dir)
	refused(usageStatus, "omit --reflink", "--reflink=always", s.dir)
	other := filepath.Join(dir, "other.avhdx")
	mustVhdxfs(t, "create", "--parent", base, other)
	refused(usageStatus, "would become unusable", s.dir)
	// The server looks for itself: a child may have come after the command has looked.
	told := func(key string) bool {
		out, err := command("getfattr", "--absolute-names", "--only-values", "-n", "user.vhdx.merge", s.disk)
		return err == nil && strings.Contains(out, key)
	}
	before := sha256File(t, other)
	must(t, "setfattr", "-n", "user.vhdx.merge", "-v", fmt.Sprintf(`{"id":"x","child":%q,"into":%q}`, child, base), s.disk)
	eventually(t, "the end of the merge", func() bool { return told(`"id":"x"`) && !told(`"running":true`) })
	if !told(`"refused":true`) || !told("would become unusable") {
		t.Errorf("a child that has come meanwhile: %s", must(t, "getfattr", "--absolute-names", "-n", "user.vhdx.merge", s.disk))
	}
	unchanged(t, other, before)
	if r := vhdxfs(t, "check", other); r.status != 0 {
		t.Errorf("it lost its parent: %s", r.stdout)
	}
	// Another program reads the parent.
	reader := readOnly(t, other)
	refused(2, "stop it first", "--force", s.dir)
	reader.end(t)
	must(t, "rm", other)

	// It is interrupted, and goes on later. Others are kept out meanwhile.
	cmd := exec.Command(program.path(t), "merge", "--rate", "4M", s.dir)
	var stderr logBuffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the merge", func() bool {
		out, err := command("getfattr", "--absolute-names", "--only-values", "-n", "user.vhdx.merge", s.disk)
		return err == nil && strings.Contains(out, `"phase"`)
	})
	if r := vhdxfs(t, "snapshot", s.dir); r.status != 2 || !strings.Contains(r.stderr, "already being") {
		t.Errorf("a snapshot meanwhile: status %d, %q", r.status, r.stderr)
	}
	refused(2, "already running", s.dir)
	writeAt(t, s.disk, fill(9), 40*mib)
	want := sha256File(t, s.disk)
	must(t, "kill", "-INT", fmt.Sprint(cmd.Process.Pid))
	if err := cmd.Wait(); err == nil || !strings.Contains(stderr.String(), "run merge again") {
		t.Errorf("%v, %q", err, stderr.String())
	}
	if got := sha256File(t, s.disk); got != want {
		t.Error("the disk reads otherwise after the interruption")
	}
	mustVhdxfs(t, "merge", "--delete", s.dir)
	if got := sha256File(t, s.disk); got != want {
		t.Error("the disk reads otherwise after the merge")
	}
	s.end(t)
	checkClean(t, base)
	if again := readOnly(t, base); sha256File(t, again.disk) != want {
		t.Error("the image holds another disk")
	}
	if names := imagesOf(t, base); len(names) != 1 {
		t.Errorf("left are %q", names)
	}
}

// A mount may only read the parents in other directories, unless its sandbox is off: the message says so, and nothing is changed.
func TestLiveMergeOfParentsElsewhere(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	base, made, raw := writtenChild(t, "32MiB", 5*mib)
	child := filepath.Join(t.TempDir(), "child.avhdx")
	must(t, "mv", made, child)
	before := sha256File(t, base)
	s := serve(t, child, "-o", "parent_dir="+filepath.Dir(base))
	requireSandbox(t, s)
	frozen := snapshot(t, "--keep-name", s.dir).Frozen
	for _, path := range []string{s.dir, frozen} {
		r := vhdxfs(t, "merge", "--into", base, path)
		if r.status != usageStatus || !strings.Contains(r.stderr, base) || !strings.Contains(r.stderr, "sandbox=off") || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("merge %s: status %d, %q", path, r.status, r.stderr)
		}
	}
	mustVhdxfs(t, "merge", "--keep-name", s.dir) // what is beside the image
	sameContent(t, s.disk, raw)
	s.end(t)
	unchanged(t, base, before)
	s = serve(t, child, "-o", "sandbox=off,parent_dir="+filepath.Dir(base))
	mustVhdxfs(t, "merge", "--delete", s.dir)
	sameContent(t, s.disk, raw)
	s.end(t)
	checkClean(t, base)
	mustVhdxfs(t, "compare", "--strict", base, raw)
	missing(t, child)
}

// A merge that is under way ends with the mount, and with the space of the parent's file system. The disk is the same.
func TestLiveMergeEnds(t *testing.T) {
	requireFUSE(t)
	requireTools(t, "getfattr")
	begun := func(s *served) bool {
		out, err := command("getfattr", "--absolute-names", "--only-values", "-n", "user.vhdx.merge", s.disk)
		return err == nil && strings.Contains(out, `"phase"`)
	}
	t.Run("unmount", func(t *testing.T) {
		base, child, raw := writtenChild(t, "64MiB", 20*mib)
		s := serve(t, child)
		cmd := exec.Command(program.path(t), "merge", "--rate", "4M", s.dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the merge", func() bool { return begun(s) })
		s.end(t)
		if err := cmd.Wait(); err == nil {
			t.Error("the merge of a mount that has ended succeeded")
		}
		mustVhdxfs(t, "compare", "--strict", child, raw)
		checkClean(t, base)
		mustVhdxfs(t, "merge", "--delete", child)
		mustVhdxfs(t, "compare", "--strict", base, raw)
	})
	t.Run("no space", func(t *testing.T) {
		made, first, raw := writtenChild(t, "64MiB", 20*mib)
		dir := smallFS(t, "tmpfs", "64")
		base, child := filepath.Join(dir, filepath.Base(made)), filepath.Join(dir, filepath.Base(first))
		must(t, "cp", "--sparse=always", made, base)
		must(t, "cp", "--sparse=always", first, child)
		s := serve(t, child)
		ballast := filepath.Join(dir, "ballast")
		if out, err := command("dd", "if=/dev/zero", "of="+ballast, "bs=64k"); err == nil {
			t.Fatalf("the file system is not full: %s", out)
		}
		must(t, "truncate", "-s", "-4M", ballast)
		for range 2 {
			if r := vhdxfs(t, "merge", s.dir); r.status != 2 || !strings.Contains(r.stderr, "no space left") || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("exit status %d, %q", r.status, r.stderr)
			}
		}
		if sha256File(t, s.disk) != sha256File(t, raw) {
			t.Error("the disk reads otherwise")
		}
		must(t, "rm", ballast)
		mustVhdxfs(t, "merge", "--keep-name", s.dir)
		s.end(t)
		checkClean(t, child)
		mustVhdxfs(t, "compare", "--strict", child, raw)
	})
}

// Only root and who has mounted a disk may merge it, and an ordinary user may with his own.
func TestLiveMergeByOthers(t *testing.T) {
	requireFUSE(t)
	requireTools(t, "fusermount3")
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be another user")
	}
	base, child, raw := writtenChild(t, "32MiB", 5*mib)
	dir := newDir(t)
	must(t, "chown", nobody, filepath.Dir(base), base, child, dir)
	must(t, "chmod", "755", root, filepath.Dir(filepath.Dir(base)), filepath.Dir(base), filepath.Dir(dir))
	s := serve(t, child, "-o", "allow_other,umask=0")
	must(t, "chmod", "755", filepath.Dir(s.dir))
	args := asNobody(program.path(t), "merge", s.dir)
	if out, err := command(args[0], args[1:]...); err == nil || !strings.Contains(out, "only root and the owner of the mount") {
		t.Errorf("%v %s", err, out)
	}
	s.end(t)
	mount := asNobody(program.path(t), child, dir)
	must(t, mount[0], mount[1:]...)
	t.Cleanup(func() { unmount(t, dir) })
	args = asNobody(program.path(t), "merge", "--keep-name", dir)
	must(t, args[0], args[1:]...)
	args = asNobody("cmp", filepath.Join(dir, "disk.raw"), raw)
	must(t, "chmod", "755", filepath.Dir(filepath.Dir(raw)), filepath.Dir(raw))
	must(t, "chmod", "644", raw)
	must(t, args[0], args[1:]...)
}

// A backup of a disk that is never unmounted: each night it is frozen, the frozen image is copied, and merged. There is one image
// in the morning, which has its name, and the copy is the disk of that night.
func TestNightlyBackupOfADiskInUse(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	nights := 12
	if *long {
		nights = 365
	}
	const size = 16 * mib
	img := create(t, fmt.Sprint(size), "--block-size", "1MiB")
	backup := filepath.Join(t.TempDir(), "backup.vhdx")
	s := serve(t, img)
	rng := rand.New(rand.NewPCG(1, 43))
	for night := range nights {
		for range 4 {
			b := randomBytes(rng, 1+rng.IntN(100_000))
			writeAt(t, s.disk, b, rng.Int64N(size-int64(len(b))))
		}
		must(t, "fallocate", "--punch-hole", "--offset", fmt.Sprint(rng.Int64N(size-2*mib)/4096*4096), "--length", fmt.Sprint(mib), s.disk)
		before := sha256File(t, s.disk)
		r := snapshot(t, "--keep-name", s.dir)
		writeAt(t, s.disk, fill(byte(night)), mib*rng.Int64N(16)) // which is not in the backup
		must(t, "cp", "--sparse=always", r.Frozen, backup)
		mustVhdxfs(t, "merge", "--keep-name", s.dir)
		if got := digestOf(t, backup); got != before {
			t.Fatalf("night %d: the backup is another disk", night)
		}
		if names := imagesOf(t, img); len(names) != 1 {
			t.Fatalf("night %d: there are the files %q", night, names)
		}
	}
	last := sha256File(t, s.disk)
	s.end(t)
	checkClean(t, img)
	checkClean(t, backup)
	if got := digestOf(t, img); got != last {
		t.Error("the image holds another disk")
	}
	if st, err := os.Stat(img); err != nil || st.Size() > size+8*mib {
		t.Errorf("after %d nights the image has %d bytes, %v", nights, st.Size(), err)
	}
}
