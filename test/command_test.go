package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The exit statuses that users may rely on.
const (
	usageStatus    = 1
	warningsStatus = 3
	damagedStatus  = 4
	mountStatus    = 32
)

// daemons lists the processes that serve a mount point.
func daemons(dir string) []int {
	var pids []int
	for pid, args := range processes() {
		if filepath.Base(args[0]) == "vhdxfs" && args[len(args)-1] == dir {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestMountGoesToTheBackground(t *testing.T) {
	requireFUSE(t)
	img, raw := sampleImage(t)
	dir, before := newDir(t), sha256File(t, img)
	mustVhdxfs(t, img, dir)
	t.Cleanup(func() {
		if _, mounted := mountAt(dir); mounted {
			unmount(t, dir)
		}
	})
	// It has returned, so everything is there at once.
	sameContent(t, filepath.Join(dir, "disk.raw"), raw)

	pids := daemons(dir)
	if len(pids) != 1 {
		t.Fatalf("processes %v serve %s, want one", pids, dir)
	}
	if own, err := syscall.Getpgid(pids[0]); err != nil || own == syscall.Getpgrp() {
		t.Errorf("process group %d, %v: it is still that of the caller", own, err)
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pids[0])); err != nil || cwd != "/" {
		t.Errorf("it keeps the directory %s busy, %v", cwd, err)
	}
	unmount(t, dir)
	eventually(t, "the end of the process in the background", func() bool { return len(daemons(dir)) == 0 })
	unchanged(t, img, before)
}

func TestMountEndsBy(t *testing.T) {
	t.Parallel()
	img, _ := sampleImage(t)
	for _, tc := range []struct {
		name string
		end  func(*testing.T, *served)
	}{
		{"fusermount3 -u", func(t *testing.T, s *served) { must(t, "fusermount3", "-u", s.dir) }},
		{"umount", func(t *testing.T, s *served) {
			if os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			unmount(t, s.dir)
		}},
		{"SIGTERM", func(_ *testing.T, s *served) { s.cmd.Process.Signal(syscall.SIGTERM) }},
		{"SIGINT", func(_ *testing.T, s *served) { s.cmd.Process.Signal(syscall.SIGINT) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t, img)
			tc.end(t, s)
			s.wait(t)
			if status := s.cmd.ProcessState.ExitCode(); status != 0 {
				t.Errorf("exit status %d\n%s", status, s.log.String())
			}
			if _, mounted := mountAt(s.dir); mounted {
				t.Error("still mounted")
			}
			if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
				t.Errorf("the mount point holds %v, %v", left, err)
			}
		})
	}
}

// A signal must not pull the disk away from under those who use it.
func TestSignalLeavesUsersTheirDisk(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	detectRaces(t)
	img, raw := sampleImage(t)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, img)
	f := open(t, s.disk)
	defer f.Close()
	s.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, "the mount to be gone", func() bool {
		_, mounted := mountAt(s.dir)
		return !mounted
	})
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil {
		t.Fatalf("read after the signal: %v", err)
	}
	if d := difference(got, want); d >= 0 {
		t.Errorf("byte %d differs after the signal", d)
	}
	if !s.running() {
		t.Error("the program has ended while disk.raw is open")
	}
	f.Close()
	s.wait(t)
}

func TestMountInUseStays(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img, raw := sampleImage(t)
	s := serve(t, img)
	f := open(t, s.disk)
	defer f.Close()
	if out, err := command("fusermount3", "-u", s.dir); err == nil {
		t.Errorf("fusermount3 -u while disk.raw is open: %s", out)
	}
	sameContent(t, s.disk, raw)
}

// What keeps a mount in use may be the shell by which the command was given: by its directory, or by a file.
func TestCallerInTheMountIsNamed(t *testing.T) {
	requireFUSE(t)
	t.Parallel()
	s := serve(t, create(t, "64M"))
	for _, command := range []string{"umount", "detach"} {
		for _, use := range []string{`cd "$2"`, `exec 3<"$2"/disk.raw`} {
			shell := exec.Command("sh", "-c", use+` && "$1" `+command+` "$2" 3<&-; exit $?`, "sh", program.path(t), s.dir)
			out, err := shell.CombinedOutput()
			want := fmt.Sprintf("in use by sh (process %d)", shell.Process.Pid)
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 32 || !strings.Contains(string(out), want) {
				t.Errorf("%s after %s: %v, %s; want %q", command, use, err, out, want)
			}
		}
	}
	s.end(t)
}

func TestBadInputIsToldApart(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	dir := t.TempDir()
	img, _ := sampleImage(t)
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	empty := file("empty.vhdx", "")
	text := file("text.vhdx", strings.Repeat("This is not a disk. ", 100_000))
	damaged := filepath.Join(dir, "damaged.vhdx")
	must(t, "cp", "--sparse=always", img, damaged)
	for _, off := range []int64{64 << 10, 128 << 10} { // both headers
		writeAt(t, damaged, []byte("HEAD"), off)
	}
	missing := filepath.Join(dir, "missing.vhdx")
	full := newDir(t)
	if err := os.WriteFile(filepath.Join(full, "something"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	at := newDir(t)

	for _, tc := range []struct {
		name   string
		args   []string
		status int
		says   []string
	}{
		{"no argument", nil, usageStatus, []string{"IMAGE"}},
		{"no mount point", []string{img}, usageStatus, []string{"MOUNTPOINT"}},
		{"too many arguments", []string{img, at, "more"}, usageStatus, []string{"more"}},
		{"unknown flag", []string{"--frobnicate", img, at}, usageStatus, []string{"frobnicate"}},
		{"unknown option", []string{"-o", "frobnicate", img, at}, usageStatus, []string{"frobnicate"}},
		{"option without its value", []string{"-o", "parent", img, at}, usageStatus, []string{"parent"}},
		{"bad value", []string{"-o", "lock=maybe", img, at}, usageStatus, []string{"lock", "maybe"}},
		{"missing image", []string{missing, at}, mountStatus, []string{missing, "no such file"}},
		{"missing mount point", []string{img, filepath.Join(dir, "nowhere")}, mountStatus, []string{"nowhere"}},
		{"mount point is a file", []string{img, text}, mountStatus, []string{text}},
		{"mount point is not empty", []string{img, full}, mountStatus, []string{full}},
		{"empty file", []string{empty, at}, mountStatus, []string{empty, "R1"}},
		{"not a VHDX", []string{text, at}, mountStatus, []string{text, "R2"}},
		{"damaged", []string{damaged, at}, mountStatus, []string{damaged, "R3", "2.2.2"}},
		{"a directory", []string{dir, at}, mountStatus, []string{dir}},
		{"info of a missing image", []string{"info", missing}, 2, []string{missing}},
		{"info of a damaged image", []string{"info", damaged}, damagedStatus, []string{damaged, "R3"}},
		{"map of a damaged image", []string{"map", damaged}, damagedStatus, []string{damaged, "R3"}},
		{"check of a missing image", []string{"check", missing}, 2, []string{missing}},
		{"check of a damaged image", []string{"check", damaged}, damagedStatus, nil}, // the report says it
	} {
		for _, where := range []string{"foreground", "background"} {
			args := tc.args
			if where == "foreground" && tc.status == mountStatus {
				args = append([]string{"-f"}, args...)
			}
			r := vhdxfs(t, args...)
			if r.status != tc.status {
				t.Errorf("%s, %s: exit status %d, want %d\n%s", tc.name, where, r.status, tc.status, r.stderr)
			}
			for _, word := range tc.says {
				if !strings.Contains(r.stderr, word) {
					t.Errorf("%s, %s: the message does not tell %q:\n%s", tc.name, where, word, r.stderr)
				}
			}
			if n := strings.Count(r.stderr, "\n"); tc.says != nil && n != 1 {
				t.Errorf("%s, %s: %d lines on standard error, want one:\n%s", tc.name, where, n, r.stderr)
			}
		}
	}
	for _, p := range []string{at, full} {
		if m, mounted := mountAt(p); mounted {
			t.Errorf("a mount is left: %+v", m)
			unmount(t, p)
		}
	}
	if s := vhdxfs(t, "check", damaged); !strings.Contains(s.stdout, "R3") {
		t.Errorf("check does not name the rule:\n%s", s.stdout)
	}
}

func TestSecondMountOnOnePoint(t *testing.T) {
	img, raw := sampleImage(t)
	s := readOnly(t, img)
	if r := vhdxfs(t, "-f", "-o", "ro", img, s.dir); r.status != mountStatus || !strings.Contains(r.stderr, s.dir) {
		t.Errorf("exit status %d, message %q", r.status, r.stderr)
	}
	sameContent(t, s.disk, raw)
}

func TestCommandsPrintJSON(t *testing.T) {
	t.Parallel()
	img, raw := sampleImage(t)
	size := stat(t, raw).Size

	i := info(t, img)
	if i.Path != img || i.Type != "dynamic" || i.DiskSize != size || i.BlockSize != mib ||
		i.FileSize != stat(t, img).Size || i.Log.State != "clean" || i.Log.Length != mib {
		t.Errorf("info --json: %+v", i)
	}

	var report struct {
		Path             string            `json:"path"`
		Errors, Warnings []json.RawMessage // no null
	}
	r := vhdxfs(t, "check", "--json", img)
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		t.Fatalf("check --json: %v\n%s", err, r.stdout)
	}
	want := 0
	if len(report.Warnings) > 0 {
		want = warningsStatus
	}
	if report.Path != img || report.Errors == nil || len(report.Errors) > 0 || r.status != want {
		t.Errorf("check --json: exit status %d, %s", r.status, r.stdout)
	}

	var extents []struct {
		Offset     int64  `json:"offset"`
		Length     int64  `json:"length"`
		Zero       bool   `json:"zero"`
		Layer      int    `json:"layer"`
		File       string `json:"file"`
		FileOffset *int64 `json:"file_offset"`
	}
	text := mustVhdxfs(t, "map", "--json", img)
	if err := json.Unmarshal([]byte(text), &extents); err != nil {
		t.Fatalf("map --json: %v\n%s", err, text)
	}
	// The map is right if a disk put together by it is.
	built := filepath.Join(t.TempDir(), "built.raw")
	must(t, "truncate", fmt.Sprint("--size=", size), built)
	var end int64
	for _, e := range extents {
		if e.Offset != end || e.Length <= 0 || e.Zero != (e.FileOffset == nil) {
			t.Fatalf("extent %+v, where one has to begin at %d", e, end)
		}
		if !e.Zero {
			if e.File != img || e.Layer != 0 {
				t.Errorf("extent %+v is not in the image", e)
			}
			writeAt(t, built, readAt(t, e.File, *e.FileOffset, int(e.Length)), e.Offset)
		}
		end += e.Length
	}
	if end != size {
		t.Errorf("the map ends at %d, the disk at %d", end, size)
	}
	sameContent(t, built, raw)
}

func TestCommandsExplainThemselves(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"info", "--help"}, {"check", "--help"}, {"map", "--help"}, {"create", "--help"},
		{"convert", "--help"}, {"flatten", "--help"}, {"compare", "--help"}, {"diff", "--help"}, {"chain", "--help"}} {
		if out := mustVhdxfs(t, args...); !strings.Contains(out, "Usage:") {
			t.Errorf("vhdxfs %s:\n%s", strings.Join(args, " "), out)
		}
	}
	for _, args := range [][]string{{"version"}, {"--version"}, {"completion", "bash"}} {
		if out := mustVhdxfs(t, args...); !strings.Contains(out, "vhdxfs") {
			t.Errorf("vhdxfs %s:\n%s", strings.Join(args, " "), out)
		}
	}
}

// Help that cannot be written is a failure, as any other output is.
func TestHelpToAFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	for _, args := range [][]string{{"--help"}, {"help"}, {"snapshot", "--help"}, {"help", "info"}, {"--version"}, {"completion", "zsh"}} {
		cmd := exec.Command(program.path(t), args...)
		var stderr strings.Builder
		cmd.Stdout, cmd.Stderr = full, &stderr
		cmd.Run()
		if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(stderr.String(), "no space left") || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%q: %v, %s", args, cmd.ProcessState, stderr.String())
		}
	}
}

// A log that is a FIFO holds up nobody: without who reads it there is no mount, and when it is full lines are lost.
func TestLogToAFIFO(t *testing.T) {
	requireFUSE(t)
	img, raw := sampleImage(t)
	fifo := filepath.Join(t.TempDir(), "log")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := newDir(t)
	for _, args := range [][]string{{img, dir}, {"-f", img, dir}} {
		if r := vhdxfs(t, append([]string{"-o", "log=" + fifo}, args...)...); r.status != mountStatus || !strings.Contains(r.stderr, "no program reads the FIFO "+fifo) {
			t.Errorf("without a reader: status %d, %s", r.status, r.stderr)
		}
	}
	reader, err := syscall.Open(fifo, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(reader)
	writer, err := syscall.Open(fifo, syscall.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{64 << 10, 1} { // until it is full
		for err = nil; err == nil; {
			_, err = syscall.Write(writer, make([]byte, n))
		}
	}
	syscall.Close(writer)
	s := readOnly(t, img, "loglevel=debug", "log="+fifo)
	sameContent(t, s.disk, raw)
	s.cmd.Process.Signal(syscall.SIGTERM) // which is logged before it unmounts
	s.wait(t)
	for n := 1; n > 0; { // make room
		n, _ = syscall.Read(reader, make([]byte, 64<<10))
	}
	s = readOnly(t, img, "loglevel=debug", "log="+fifo)
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.wait(t)
	line := make([]byte, 64<<10)
	if n, err := syscall.Read(reader, line); err != nil || !strings.Contains(string(line[:n]), "unmounting "+s.dir) {
		t.Errorf("with room: %q, %v", line[:max(n, 0)], err)
	}
}

func TestInfoAndCheckForPeople(t *testing.T) {
	t.Parallel()
	img, _ := sampleImage(t)
	out := mustVhdxfs(t, "info", "-v", img)
	for _, word := range []string{"dynamic", "1 MiB", "QEMU", "clean"} {
		if !strings.Contains(out, word) {
			t.Errorf("info does not tell %q:\n%s", word, out)
		}
	}
	if out := vhdxfs(t, "check", img).stdout; !strings.Contains(out, img) {
		t.Errorf("check does not name the image:\n%s", out)
	}
	if out := mustVhdxfs(t, "map", img); strings.Count(out, "\n") < 2 {
		t.Errorf("map:\n%s", out)
	}
}

// A line in fstab ends up at mount.fuse3, which hands over the options as the program must take them.
func TestMountByMountFuse(t *testing.T) {
	requireFUSE(t)
	requireTools(t, "mount.fuse3")
	img, raw := sampleImage(t)
	dir := newDir(t)
	must(t, "mount.fuse3", program.path(t)+"#"+img, dir, "-o", "ro,nofail,_netdev,x-systemd.requires=other.mount,noatime")
	t.Cleanup(func() {
		unmount(t, dir)
		eventually(t, "the end of the process in the background", func() bool { return len(daemons(dir)) == 0 })
	})
	sameContent(t, filepath.Join(dir, "disk.raw"), raw)
}
