package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A listed mount is what list --json and attach --json say of one.
type listed struct {
	Image      string         `json:"image"`
	MountPoint string         `json:"mount_point"`
	State      string         `json:"state"`
	PID        int            `json:"pid"`
	Mode       string         `json:"mode"`
	Kernel     string         `json:"kernel"`
	Devices    []listedDevice `json:"devices"`
}

type listedDevice struct {
	Device     string   `json:"device"`
	Number     int      `json:"number"` // of a partition
	Start      int64    `json:"start"`  // of a partition
	Size       int64    `json:"size"`
	SectorSize int64    `json:"sector_size"`
	ReadOnly   bool     `json:"read_only"`
	Uses       []string `json:"uses"`

	Partitions []listedDevice `json:"partitions"`
}

// list returns what the program lists of the image, and false where that is nothing.
func list(t *testing.T, img string) (listed, bool) {
	t.Helper()
	return listedOf(listAll(t), img)
}

func listAll(t *testing.T) (all []listed) {
	t.Helper()
	text := mustVhdxfs(t, "list", "--json")
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatalf("list --json: %v\n%s", err, text)
	}
	return all
}

func listedOf(all []listed, img string) (listed, bool) {
	i := slices.IndexFunc(all, func(l listed) bool { return l.Image == img })
	if i < 0 {
		return listed{}, false
	}
	return all[i], true
}

// attachImage attaches an image with the program. The test's end detaches it, if nobody did.
func attachImage(t *testing.T, img string, args ...string) listed {
	t.Helper()
	requireLoop(t)
	requireTools(t, "partx")
	text := mustVhdxfs(t, append(append([]string{"attach", "--json"}, args...), img)...)
	t.Cleanup(func() { detachLeft(t, img) })
	var l listed
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		t.Fatalf("attach --json: %v\n%s", err, text)
	}
	overdue := deadline(t, l.MountPoint, l.PID)
	t.Cleanup(func() { overdue.Stop() })
	if len(l.Devices) != 1 {
		t.Fatalf("attach: %d devices, want one\n%s", len(l.Devices), text)
	}
	return l
}

// detachLeft detaches the image if it is still mounted.
func detachLeft(t *testing.T, img string) {
	t.Helper()
	if l, ok := list(t, img); ok {
		mustVhdxfs(t, "detach", l.MountPoint)
	}
}

// checkDetached fails the test if anything of an attached image is left.
func checkDetached(t *testing.T, l listed) {
	t.Helper()
	for _, m := range mounts() {
		if m.point == l.MountPoint {
			t.Errorf("%s is still mounted", l.MountPoint)
		}
	}
	for _, d := range l.Devices {
		b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(d.Device), "loop/backing_file"))
		if err == nil && strings.TrimSpace(string(b)) == l.MountPoint+"/disk.raw" {
			t.Errorf("%s is still attached", d.Device)
		}
	}
	if args := processes()[l.PID]; len(args) > 0 {
		t.Errorf("process %d is still there: %q", l.PID, args)
	}
}

// From the image to a file system in it and back; while it is mounted, nothing is taken away.
func TestAttach(t *testing.T) {
	img := create(t, "64MiB")
	l := attachImage(t, img)
	dev := l.Devices[0]
	if l.Image != img || l.State != "serving" || l.Mode != "rw" || dev.ReadOnly || dev.Size != 64*mib || dev.SectorSize != 512 {
		t.Errorf("attached: %+v", l)
	}
	if filepath.Dir(l.MountPoint) != "/run/vhdxfs" || !strings.HasPrefix(filepath.Base(l.MountPoint), "disk") {
		t.Errorf("the mount point is %s", l.MountPoint)
	}
	must(t, "mkfs.ext4", "-q", dev.Device)
	dir := newDir(t)
	must(t, "mount", dev.Device, dir)
	inside := true
	t.Cleanup(func() {
		if inside {
			unmount(t, dir)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, ok := list(t, img)
	if !ok || got.PID != l.PID || len(got.Devices) != 1 || !slices.Equal(got.Devices[0].Uses, []string{"mounted at " + dir}) {
		t.Errorf("list: %+v, want process %d and a device mounted at %s", got, l.PID, dir)
	}
	for _, name := range []string{img, dev.Device, l.MountPoint} {
		if r := vhdxfs(t, "detach", name); r.status != 32 || !strings.Contains(r.stderr, dev.Device+" is mounted at "+dir) {
			t.Errorf("detach %s while it is used: status %d, %q; want 32 and where", name, r.status, r.stderr)
		}
	}
	out, err := command("bash", "-c", `exec -a umount.fuse.vhdxfs "$0" "$1"`, program.path(t), l.MountPoint)
	if err == nil || !strings.Contains(out, "loop device "+dev.Device) || strings.Contains(out, strconv.Itoa(l.PID)) {
		t.Errorf("umount while it is used: %v, %q; want the device, and not the process that serves it", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "kept" {
		t.Errorf("after a detach that was refused: %q, %v", b, err)
	}
	unmount(t, dir)
	inside = false
	mustVhdxfs(t, "detach", img)
	checkDetached(t, l)
	if _, err := os.Lstat(l.MountPoint); !os.IsNotExist(err) {
		t.Errorf("the directory that attach made: %v", err)
	}
	checkClean(t, img)

	// Read-only: what was written is there, and not a byte of the image changes.
	before := sha256File(t, img)
	point := newDir(t)
	text := mustVhdxfs(t, "attach", "-r", img, point)
	t.Cleanup(func() { detachLeft(t, img) })
	got, ok = list(t, img)
	if !ok || got.Mode != "ro" || len(got.Devices) != 1 || !got.Devices[0].ReadOnly || got.MountPoint != point {
		t.Fatalf("attached read-only: %+v", got)
	}
	if text != got.Devices[0].Device+"\n" {
		t.Errorf("attach prints %q, want the device %s", text, got.Devices[0].Device)
	}
	must(t, "mount", "-o", "ro,noload", got.Devices[0].Device, dir)
	inside = true
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "kept" {
		t.Errorf("attached again: %q, %v", b, err)
	}
	unmount(t, dir)
	inside = false
	mustVhdxfs(t, "detach", got.Devices[0].Device)
	checkDetached(t, got)
	if _, err := os.Lstat(point); err != nil {
		t.Errorf("a mount point that attach did not make: %v", err)
	}
	if sha256File(t, img) != before {
		t.Error("the image has changed")
	}
}

// The partitions of a disk, with either size of sectors, are there when attach returns.
func TestAttachPartitions(t *testing.T) {
	requireTools(t, "sfdisk")
	for _, sector := range []int64{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			img := create(t, "64MiB", "--logical-sector-size", fmt.Sprint(sector))
			l := attachImage(t, img)
			if d := l.Devices[0]; len(d.Partitions) > 0 || d.SectorSize != sector {
				t.Fatalf("attached: %+v", d)
			}
			table := filepath.Join(t.TempDir(), "table")
			if err := os.WriteFile(table, []byte("label: gpt\nstart=1MiB, size=8MiB\nstart=16MiB, size=32MiB\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			must(t, "sh", "-c", "exec sfdisk --quiet --no-reread --no-tell-kernel "+l.Devices[0].Device+" <"+table)
			mustVhdxfs(t, "detach", l.Devices[0].Device)
			checkDetached(t, l)

			l = attachImage(t, img)
			d := l.Devices[0]
			var got []string
			for _, p := range d.Partitions {
				got = append(got, fmt.Sprintf("%s %d %d %d", strings.TrimPrefix(p.Device, d.Device), p.Number, p.Start/mib, p.Size/mib))
			}
			if want := []string{"p1 1 1 8", "p2 2 16 32"}; !slices.Equal(got, want) {
				t.Fatalf("partitions %q, want %q", got, want)
			}
			part := d.Partitions[1].Device
			must(t, "mkfs.ext4", "-q", "-L", "data", part)
			dir := newDir(t)
			must(t, "mount", part, dir)
			plain := vhdxfs(t, "list")
			r := vhdxfs(t, "detach", d.Partitions[0].Device)
			unmount(t, dir)
			if r.status != 32 || !strings.Contains(r.stderr, part+" is mounted at "+dir) {
				t.Errorf("detach while a partition is mounted: status %d, %q", r.status, r.stderr)
			}
			want := fmt.Sprintf("%s 64 MiB rw mounted at %s, process %d %s 64 MiB loop %s 8 MiB part %s 32 MiB part ext4 data mounted at %s",
				img, l.MountPoint, l.PID, d.Device, d.Partitions[0].Device, part, dir)
			if !strings.Contains(words(plain.stdout), want) {
				t.Errorf("list:\n%s\nlacks\n%s", plain.stdout, want)
			}
			mustVhdxfs(t, "detach", part)
			checkDetached(t, l)
			checkClean(t, img)
		})
	}
}

// words returns a table without the spaces between its columns.
func words(s string) string { return strings.Join(strings.Fields(s), " ") }

// A program in front of one of util-linux, for what that does seldom.
func fakeTool(t *testing.T, name, script string) (path string) {
	t.Helper()
	dir := t.TempDir()
	real, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s, which is not installed", name)
	}
	script = "#!/bin/sh\n" + strings.ReplaceAll(script, "REAL", real) + "\n"
	if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return "PATH=" + dir + ":" + os.Getenv("PATH")
}

// runDirs lists the mount points that attach has made.
func runDirs(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("/run/vhdxfs/*")
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// Whatever step fails, nothing is left of those before.
func TestAttachFails(t *testing.T) {
	requireLoop(t)
	requireTools(t, "unshare")
	good := create(t, "64MiB")
	locked := create(t, "64MiB")
	serve(t, locked)
	noImage := filepath.Join(t.TempDir(), "no.vhdx")
	if err := os.WriteFile(noImage, bytes.Repeat([]byte("x"), 4*mib), 0o644); err != nil {
		t.Fatal(err)
	}
	full := newDir(t)
	if err := os.WriteFile(filepath.Join(full, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	program := program.path(t)
	withoutDevices := []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /dev && exec "$@"`, "sh"}
	for _, tc := range []struct {
		name   string
		before []string // the command that runs the program
		env    string
		args   []string
		status int
		want   string
	}{
		{name: "no loop devices", before: withoutDevices, args: []string{good}, status: 2, want: "modprobe loop"},
		{name: "losetup fails", env: fakeTool(t, "losetup", `echo no device today >&2; exit 1`), args: []string{good}, status: 32, want: "no device today"},
		{name: "losetup attaches and fails", env: fakeTool(t, "losetup", `case "$*" in *--find*) REAL "$@"; echo but >&2; exit 1;; esac; exec REAL "$@"`),
			args: []string{good}, status: 32, want: "but"},
		{name: "partitions cannot be added", env: fakeTool(t, "partx", `case "$*" in *--add*) echo not added >&2; exit 1;; esac; echo 1`),
			args: []string{good}, status: 32, want: "not added"},
		{name: "locked", args: []string{locked}, status: 32, want: locked},
		{name: "missing image", args: []string{good + "x"}, status: 32, want: "no such file"},
		{name: "no image", args: []string{noImage}, status: 32, want: "not a VHDX file"},
		{name: "missing mount point", args: []string{good, full + "/no"}, status: 32, want: "mkdir -p"},
		{name: "mount point with files", args: []string{good, full}, status: 32, want: "is not empty"},
		{name: "unknown option", args: []string{"-o", "discrad=off", good}, status: 1, want: "did you mean discard?"},
		{name: "in the foreground", args: []string{"-o", "foreground", good}, status: 1, want: "foreground"},
		{name: "no arguments", status: 1, want: "missing IMAGE"},
		{name: "too many arguments", args: []string{good, full, full}, status: 1, want: "unexpected argument"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dirs, before := runDirs(t), sha256File(t, good)
			argv := append(append(slices.Clone(tc.before), program, "attach"), tc.args...)
			cmd := exec.Command(argv[0], argv[1:]...)
			cmd.Env = os.Environ()
			if tc.env != "" {
				cmd.Env = append(cmd.Env, tc.env)
			}
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, patience
			cmd.Run()
			if status := cmd.ProcessState.ExitCode(); status != tc.status || !strings.Contains(stderr.String(), tc.want) || stdout.Len() > 0 {
				t.Errorf("status %d, %q, %q; want %d and %q", status, stdout.String(), stderr.String(), tc.status, tc.want)
			}
			checkLog(t, stderr.String())
			checkNothingLeft(t, good, dirs, before)
		})
	}
}

// checkNothingLeft fails the test if something is left of an attempt to attach the image.
func checkNothingLeft(t *testing.T, img string, dirs []string, sum string) {
	t.Helper()
	for _, m := range mounts() {
		if m.source == img {
			t.Errorf("a mount at %s is left", m.point)
			unmount(t, m.point)
		}
	}
	if now := runDirs(t); !slices.Equal(now, dirs) {
		t.Errorf("directories %q are there, and before there were %q", now, dirs)
	}
	for pid, args := range processes() {
		if slices.Contains(args, img) {
			t.Errorf("process %d is left: %q", pid, args)
		}
	}
	devices, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, d := range devices {
		if b, err := os.ReadFile(d); err == nil && strings.HasPrefix(string(b), "/run/vhdxfs/") && !slices.ContainsFunc(dirs, func(dir string) bool {
			return strings.HasPrefix(string(b), dir+"/")
		}) {
			t.Errorf("%s is left on %s", d, b)
		}
	}
	if sha256File(t, img) != sum {
		t.Error("the image has changed")
	}
}

// A signal in the middle undoes what was done so far.
func TestAttachInterrupted(t *testing.T) {
	requireLoop(t)
	for _, command := range []string{"attach", "open"} {
		t.Run(command, func(t *testing.T) {
			img := create(t, "64MiB")
			started := filepath.Join(t.TempDir(), "started")
			env := fakeTool(t, "losetup", `case "$*" in *--find*) REAL "$@"; : >`+started+`; exec sleep 60;; esac; exec REAL "$@"`)
			dirs, before := runDirs(t), sha256File(t, img)
			cmd := exec.Command(program.path(t), command, img)
			cmd.Env = append(os.Environ(), env)
			var stderr logBuffer
			cmd.Stderr, cmd.WaitDelay = &stderr, patience
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "losetup", func() bool {
				_, err := os.Stat(started)
				return err == nil
			})
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			if status := cmd.ProcessState.ExitCode(); status != 130 || !strings.Contains(stderr.String(), "vhdxfs: interrupted; nothing is left attached or mounted\n") {
				t.Errorf("status %d, %q; want 130", status, stderr.String())
			}
			checkNothingLeft(t, img, dirs, before)
		})
	}
}

// Where nobody can be told of the device, there is none.
func TestAttachUnheard(t *testing.T) {
	requireLoop(t)
	img := create(t, "64MiB")
	dirs, before := runDirs(t), sha256File(t, img)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	closed, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	closed.Close()
	for stdout, want := range map[*os.File]string{full: "no space left on device", pipe: "broken pipe"} {
		var stderr bytes.Buffer
		cmd := exec.Command(program.path(t), "attach", img)
		cmd.Stdout, cmd.Stderr, cmd.WaitDelay = stdout, &stderr, patience
		cmd.Run()
		if status := cmd.ProcessState.ExitCode(); status != 32 || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: status %d, %q; want 32", want, status, stderr.String())
		}
		checkNothingLeft(t, img, dirs, before)
	}
}

// A mount is found by each of its names, and a name that fits several is refused.
func TestDetachNames(t *testing.T) {
	img := create(t, "64MiB")
	link := filepath.Join(t.TempDir(), "link.vhdx")
	if err := os.Symlink(img, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []func(listed) string{
		func(listed) string { return link },
		func(l listed) string { return l.MountPoint + "/disk.raw" },
		func(l listed) string { return l.MountPoint + "/" },
	} {
		l := attachImage(t, img)
		mustVhdxfs(t, "detach", name(l))
		checkDetached(t, l)
	}

	// A name need not be text.
	odd := filepath.Join(t.TempDir(), "\xff\n.vhdx")
	if err := os.Rename(img, odd); err != nil {
		t.Fatal(err)
	}
	mustVhdxfs(t, "attach", odd)
	if text := mustVhdxfs(t, "list"); !strings.Contains(text, `\xff\n.vhdx" `) {
		t.Errorf("list: %s; want the name in quotes", text)
	}
	mustVhdxfs(t, "detach", odd)
	if err := os.Rename(odd, img); err != nil {
		t.Fatal(err)
	}

	// A mount that was made by hand, and has no device.
	s := readOnly(t, img)
	mustVhdxfs(t, "detach", img)
	s.wait(t)

	one, two := readOnly(t, img), readOnly(t, img)
	r := vhdxfs(t, "detach", img)
	if r.status != 32 || !strings.Contains(r.stderr, one.dir) || !strings.Contains(r.stderr, two.dir) {
		t.Errorf("detach of an image that is mounted twice: status %d, %q", r.status, r.stderr)
	}
	mustVhdxfs(t, "detach", two.dir)
	mustVhdxfs(t, "detach", one.dir)

	// The server of another image has /dev/null open for writing.
	another := attachImage(t, create(t, "64MiB"))
	for _, name := range []string{img, t.TempDir(), "/dev/null", "/dev/loop-control", "nothing"} {
		if r := vhdxfs(t, "detach", name); r.status != 6 || !strings.Contains(r.stderr, "vhdxfs list") {
			t.Errorf("detach %s: status %d, %q; want 6 and a hint", name, r.status, r.stderr)
		}
	}
	mustVhdxfs(t, "detach", another.Image)
	if r := vhdxfs(t, "detach"); r.status != 1 || !strings.Contains(r.stderr, "missing") {
		t.Errorf("detach without a name: status %d, %q", r.status, r.stderr)
	}
}

// Who has a device open for a moment is waited for, and who keeps it open is named.
func TestDetachWaitsForPrograms(t *testing.T) {
	img := create(t, "64MiB")
	l := attachImage(t, img)
	f, err := os.Open(l.Devices[0].Device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := fmt.Sprintf("%s is open in ", l.Devices[0].Device)
	if r := vhdxfs(t, "detach", img); r.status != 32 || !strings.Contains(r.stderr, want) || !strings.Contains(r.stderr, strconv.Itoa(os.Getpid())) {
		t.Errorf("detach of a device that is open: status %d, %q; want 32 and %q", r.status, r.stderr, want)
	}
	if got, ok := list(t, img); !ok || len(got.Devices) != 1 {
		t.Errorf("after that: %+v", got)
	}
	time.AfterFunc(time.Second, func() { f.Close() })
	mustVhdxfs(t, "detach", img)
	checkDetached(t, l)
}

// The program is killed beneath a loop device: list says so, and detach puts the ruins away.
func TestListDead(t *testing.T) {
	img := create(t, "64MiB")
	l := attachImage(t, img)
	if err := syscall.Kill(l.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var got listed
	eventually(t, "the mount to be dead", func() bool {
		got, _ = list(t, img)
		return got.State == "dead"
	})
	if got.MountPoint != l.MountPoint || len(got.Devices) != 1 || got.Devices[0].Device != l.Devices[0].Device {
		t.Errorf("list: %+v, want what was attached: %+v", got, l)
	}
	if r := vhdxfs(t, "list"); r.status != 0 || !strings.Contains(words(r.stdout), img+" rw, dead mounted at "+l.MountPoint) {
		t.Errorf("list: status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
	mustVhdxfs(t, "detach", img)
	checkDetached(t, l)
	if dirs := runDirs(t); slices.Contains(dirs, l.MountPoint) {
		t.Errorf("%s is left", l.MountPoint)
	}
}

// The program is killed beneath a loop device, and the image attached again: in the same place, and nothing is left of the
// first time. While somebody uses the old device, that stays, and so it does with noclean_stale.
func TestAttachAfterKill(t *testing.T) {
	// A name that no other mount point has: its own is then what attach tries first.
	img := filepath.Join(filepath.Dir(create(t, "64MiB")), fmt.Sprintf("killed-%d.vhdx", os.Getpid()))
	mustVhdxfs(t, "create", "--size", "64MiB", img)
	l := attachImage(t, img)
	t.Cleanup(func() { // of those that a failure has left
		for _, m := range listAll(t) {
			if m.Image == img {
				mustVhdxfs(t, "detach", m.MountPoint)
			}
		}
	})
	kill := func(pid int, dir string) {
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the mount to be dead", func() bool {
			return slices.ContainsFunc(listAll(t), func(m listed) bool { return m.MountPoint == dir && m.State == "dead" })
		})
	}
	mine := func() (points []string) {
		for _, m := range listAll(t) {
			if m.Image == img {
				points = append(points, m.MountPoint)
			}
		}
		return points
	}
	kill(l.PID, l.MountPoint)
	again := attachImage(t, img)
	if again.MountPoint != l.MountPoint || !slices.Equal(mine(), []string{l.MountPoint}) {
		t.Errorf("attached at %s, before at %s; there are %q", again.MountPoint, l.MountPoint, mine())
	}
	if on := loopsOn(t, again.MountPoint+"/disk.raw"); len(on) != 1 {
		t.Errorf("loop devices %q, want one", on)
	}

	kill(again.PID, again.MountPoint)
	second := attachImage(t, img, "-o", "noclean_stale")
	if second.MountPoint != l.MountPoint+"-2" {
		t.Errorf("with noclean_stale: %s", second.MountPoint)
	}
	mustVhdxfs(t, "detach", second.MountPoint)
	user, err := os.Open(again.Devices[0].Device)
	if err != nil {
		t.Fatal(err)
	}
	defer user.Close()
	r := vhdxfs(t, "attach", img)
	if r.status != 0 || !strings.Contains(r.stderr, "its server has died; not cleared: "+again.Devices[0].Device+" is open in") {
		t.Errorf("while the device is in use: status %d, %s", r.status, r.stderr)
	}
	if now := mine(); !slices.Equal(now, []string{l.MountPoint, l.MountPoint + "-2"}) {
		t.Errorf("mounts %q", now)
	}
	user.Close()
	mustVhdxfs(t, "detach", l.MountPoint+"-2")
	mustVhdxfs(t, "detach", l.MountPoint)
	checkDetached(t, again)

	// At a mount point of the user's own, too.
	dir := newDir(t)
	mustVhdxfs(t, "attach", img, dir)
	l, _ = list(t, img)
	kill(l.PID, dir)
	// The kernel counts each attaching and detaching; the file's name goes with the mount.
	diskseq := filepath.Join("/sys/block", filepath.Base(l.Devices[0].Device), "diskseq")
	before := must(t, "cat", diskseq)
	mustVhdxfs(t, "attach", img, dir)
	if must(t, "cat", diskseq) == before {
		t.Errorf("%s is still attached to the disk of the dead mount", l.Devices[0].Device)
	}
	mustVhdxfs(t, "detach", dir)
}

// loopsOn names the loop devices on a file.
func loopsOn(t *testing.T, file string) (names []string) {
	t.Helper()
	backings, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range backings {
		if is, err := os.ReadFile(b); err == nil && strings.TrimSpace(string(is)) == file {
			names = append(names, filepath.Base(filepath.Dir(filepath.Dir(b))))
		}
	}
	return names
}

// A process that does not answer holds up neither list nor detach, and another mount is listed as ever.
func TestListNotAnswering(t *testing.T) {
	img, other := create(t, "64MiB"), create(t, "64MiB")
	l := attachImage(t, img)
	s := serve(t, other)
	if err := syscall.Kill(l.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := func() { syscall.Kill(l.PID, syscall.SIGCONT) }
	t.Cleanup(resume) // before the image is detached
	all := listAll(t)
	if got, ok := listedOf(all, img); !ok || got.State != "not answering" || got.PID != 0 || len(got.Devices) != 1 {
		t.Errorf("list: %+v, want one that does not answer", got)
	}
	if got, ok := listedOf(all, other); !ok || got.State != "serving" || got.PID != s.cmd.Process.Pid {
		t.Errorf("list of another mount: %+v", got)
	}
	if r := vhdxfs(t, "detach", img); r.status != 32 || !strings.Contains(r.stderr, "does not answer") {
		t.Errorf("detach: status %d, %q; want 32", r.status, r.stderr)
	}
	resume()
	mustVhdxfs(t, "detach", img)
	checkDetached(t, l)
}

// A user sees what others have mounted, and asks only what he may.
func TestListAsUser(t *testing.T) {
	requireFUSE(t)
	requireTools(t, "setpriv")
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	// The program and the mount points have to be in reach of the user.
	dir, err := os.MkdirTemp("/var/tmp", "vhdxfs-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "vhdxfs")
	must(t, "cp", program.path(t), bin)
	for _, tc := range []struct{ option, state string }{{"allow_other", "serving"}, {"no_allow_other", "unknown"}} {
		img := create(t, "64MiB")
		letPass(t, img) // or the user may not ask
		point := filepath.Join(dir, tc.option)
		if err := os.Mkdir(point, 0o755); err != nil {
			t.Fatal(err)
		}
		mustVhdxfs(t, "-o", tc.option, img, point)
		t.Cleanup(func() { detachLeft(t, img) })
		asUser := func(args ...string) (string, error) {
			return command("setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", bin}, args...)...)
		}
		text, err := asUser("list")
		want := img + " rw, unknown mounted at " + point
		if tc.state == "serving" {
			want = img + " 64 MiB rw mounted at " + point + ", process "
		}
		if err != nil || !strings.Contains(words(text), want) {
			t.Errorf("list as a user with %s: %v\n%s", tc.option, err, text)
		}
		if text, err := asUser("detach", point); err == nil {
			t.Errorf("a user has detached root's mount: %s", text)
		}
		if text, err := asUser("attach", img, point); err == nil || !strings.Contains(text, "needs root") {
			t.Errorf("attach as a user: %v, %s", err, text)
		}
		mustVhdxfs(t, "detach", img)
	}
}

// The table of a disk that was cut off names a partition that the disk does not have in full. Some kernels take it. Where this one does
// not, the error says what is wrong, and nothing stays attached.
func TestAttachOfADiskThatWasCutOff(t *testing.T) {
	requireLoop(t)
	requireTools(t, "sfdisk", "partx")
	raw, img := randomRaw(t, 64*mib, 16), filepath.Join(newDir(t), "disk.vhdx")
	must(t, "sh", "-c", `printf 'label: dos\nstart=2048,size=100000\n' | sfdisk -q "$1"`, "sh", raw)
	must(t, "truncate", "--size", "32M", raw)
	mustVhdxfs(t, "convert", "-f", "raw", raw, img)
	r := vhdxfs(t, "attach", img)
	if r.status == 0 {
		mustVhdxfs(t, "detach", img)
	} else if lines := strings.Split(strings.TrimSpace(r.stderr), "\n"); r.status != 32 || !strings.Contains(lines[len(lines)-1], img+": ") || !strings.Contains(r.stderr, "beyond the end") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
	checkClosed(t, img)
}

// udevFor has udev handle devices as at their appearance, with the rule of the packages among its own, and shows what lsblk then reads
// of the first. It happens beside a /dev and a database of its own: other programs of this host see nothing of it.
const udevFor = `set -e
dir=$1; shift
mount --make-rprivate /
mkdir "$dir/dev"
mount -t tmpfs tmpfs "$dir/dev"
cp -a /dev/null /dev/urandom "$@" "$dir/dev"
mkdir -p /run/udev
mount -t tmpfs tmpfs /run/udev
mkdir /run/udev/rules.d /run/udev/data
cp ../packaging/udev/60-vhdxfs.rules /run/udev/rules.d
mount --move "$dir/dev" /dev
for d; do
  udevadm test --action=add "/sys/class/block/${d##*/}" 2>&1
done
lsblk --nodeps --noheadings --output MODEL,SERIAL "$1"
`

// With the rule for udev, programs that show disks show the model and the serial number of an attached one.
func TestUdevRule(t *testing.T) {
	requireTools(t, "udevadm", "getfattr", "lsblk", "unshare")
	made := partitioned(t, "64M", part{"20MiB", "", nil})
	img := filepath.Join(filepath.Dir(made), "Windows 10.vhdx") // the name is part of the path of disk.raw
	must(t, "mv", made, img)
	id := info(t, img).DiskID
	l := attachImage(t, img)
	dev, part := l.Devices[0].Device, l.Devices[0].Partitions[0].Device
	out, err := command("unshare", "--mount", "sh", "-c", udevFor, "sh", t.TempDir(), dev, part)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if got := strings.Fields(lines[len(lines)-1]); !slices.Equal(got, []string{"VHDX", id}) {
		t.Errorf("lsblk shows %q, want VHDX and %s\n%s", got, id, out)
	}
	for name, want := range map[string]string{"ID_VENDOR": "vhdxfs", "ID_MODEL": "VHDX", "ID_SERIAL": "vhdxfs_" + id, "ID_SERIAL_SHORT": id} {
		if n := strings.Count(out, "\n"+name+"="+want+"\n"); n != 2 { // of the disk and of its partition
			t.Errorf("%s=%s is told of %d devices, want 2\n%s", name, want, n, out)
		}
	}
	// A loop device with another disk.raw gets nothing.
	other := attach(t, randomRaw(t, 8*mib, 15), 512)
	out, err = command("unshare", "--mount", "sh", "-c", udevFor, "sh", t.TempDir(), other)
	if err != nil || strings.Contains(out, "ID_MODEL=") {
		t.Errorf("another loop device: %v\n%s", err, out)
	}
}

// The rule is correct for udev, where that can say so.
func TestUdevVerifiesTheRule(t *testing.T) {
	t.Parallel()
	requireTools(t, "udevadm")
	if out, err := command("udevadm", "verify", "--help"); err != nil {
		t.Skipf("udevadm has no verify, as before version 254: %s", strings.TrimSpace(out))
	}
	if out, err := command("udevadm", "verify", "--resolve-names=never", "../packaging/udev/60-vhdxfs.rules"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
