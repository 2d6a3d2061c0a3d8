package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel counts on this process when memory is short, and has to know it: by two flags of each thread, and by
// the score of the OOM killer.
func TestDaemonIsKnownToMemoryManagement(t *testing.T) {
	if !mayUseReserves() {
		t.Skip("needs CAP_SYS_RESOURCE, for PR_SET_IO_FLUSHER and oom_score_adj")
	}
	img := create(t, "16MiB")
	for _, tc := range []struct {
		name, options, score string
	}{
		{"by default", "rw", "-1000"},
		{"as asked for", "oom_score_adj=-17", "-17"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t, img, "-o", tc.options)
			pid := s.cmd.Process.Pid
			wantFlusher(t, pid)
			score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
			if err != nil || strings.TrimSpace(string(score)) != tc.score {
				t.Errorf("oom_score_adj %q, %v; want %s", score, err, tc.score)
			}
		})
	}
	t.Run("in the background", func(t *testing.T) {
		dir := newDir(t)
		mustVhdxfs(t, img, dir)
		t.Cleanup(func() {
			unmount(t, dir)
			eventually(t, "the end of the process in the background", func() bool { return len(daemons(dir)) == 0 })
		})
		pids := daemons(dir)
		if len(pids) != 1 {
			t.Fatalf("processes %v serve %s, want one", pids, dir)
		}
		wantFlusher(t, pids[0])
	})
}

// mayUseReserves says whether this process has CAP_SYS_RESOURCE, by which a program may become an I/O flusher.
func mayUseReserves() bool {
	const sysResource = 24
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(rest), 16, 64)
			return err == nil && caps&(1<<sysResource) != 0
		}
	}
	return false
}

// wantFlusher fails the test unless each thread of a process is an I/O flusher (PR_SET_IO_FLUSHER).
func wantFlusher(t *testing.T, pid int) {
	t.Helper()
	const (
		memallocNoIO  = 0x00080000 // PF_MEMALLOC_NOIO of the kernel
		localThrottle = 0x00100000 // PF_LOCAL_THROTTLE
		want          = memallocNoIO | localThrottle
	)
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of process %d: %v, %v", pid, threads, err)
	}
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		// The name of the program, in parentheses, may hold anything.
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		flags, err := strconv.ParseUint(fields[6], 10, 64)
		if err != nil || flags&want != want {
			t.Errorf("%s: flags %#x, %v; want those of an I/O flusher, %#x", path, flags, err, want)
		}
	}
}

// A memoryGroup is a cgroup with a bound to its memory.
type memoryGroup struct {
	dir   string
	first bool // of the first version
}

// newMemoryGroup makes a cgroup, of the second version or the first, below that of the test.
func newMemoryGroup(t *testing.T, limit int64) *memoryGroup {
	t.Helper()
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skipf("needs cgroups: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		var parent, file string
		switch {
		case f[1] == "memory":
			parent, file = filepath.Join("/sys/fs/cgroup/memory", f[2]), "memory.limit_in_bytes"
		case f[1] == "":
			// A group that has processes can hand no controller to groups below it, except the root.
			parent, file = "/sys/fs/cgroup", "memory.max"
		default:
			continue
		}
		g := &memoryGroup{dir: filepath.Join(parent, filepath.Base(root)), first: f[1] == "memory"}
		if os.Mkdir(g.dir, 0o755) != nil {
			continue
		}
		if os.WriteFile(filepath.Join(g.dir, file), strconv.AppendInt(nil, limit, 10), 0o644) != nil {
			os.Remove(g.dir)
			continue
		}
		t.Cleanup(func() {
			eventually(t, "the memory cgroup to be empty", func() bool {
				err := os.Remove(g.dir)
				return err == nil || os.IsNotExist(err)
			})
		})
		return g
	}
	t.Skip("needs a memory cgroup, which cannot be made here")
	return nil
}

// wrap returns a program that runs the given one inside the group, as the same process.
func (g *memoryGroup) wrap(t *testing.T, program string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), filepath.Base(program))
	script := fmt.Sprintf("#!/bin/sh\necho $$ >'%s/cgroup.procs' && exec '%s' \"$@\"\n", g.dir, program)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// short tells how often memory was refused at first, because the bound was reached.
func (g *memoryGroup) short(t *testing.T) int64 {
	t.Helper()
	if text, err := os.ReadFile(filepath.Join(g.dir, "memory.failcnt")); err == nil {
		n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return n
	}
	text, err := os.ReadFile(filepath.Join(g.dir, "memory.events"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "max "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return n
		}
	}
	return 0
}

// The writer, the page cache of the file system inside and the process that has to write it back share a memory
// that is smaller than what is written: nobody may wait for the other for ever. With -long, more is written.
//
// In a cgroup of the first version whoever needs memory waits for what the group has under writeback, unless it is an
// I/O flusher. Where the program may not become one, it stays outside.
func TestWritebackInLittleMemory(t *testing.T) {
	requireLoop(t)
	requireFileSystem(t, "ext4")
	requireTools(t, "fio")
	const limit, jobs = 96 * mib, 4
	size := 48 * mib // of a job
	if *long {
		size = 400 * mib
	}
	g := newMemoryGroup(t, limit)
	img := create(t, strconv.Itoa(jobs*size+128*mib), "--block-size", "1MiB")
	run := release.path(t)
	if g.first && !mayUseReserves() {
		t.Log("no CAP_SYS_RESOURCE: the program has memory of its own")
	} else {
		run = g.wrap(t, run)
	}
	s := start(t, run, img)
	eventually(t, "the mount at "+s.dir, func() bool {
		_, ok := mountAt(s.dir)
		return ok
	})
	connection := fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", unix.Minor(stat(t, s.dir).Dev))
	l := attachRW(t, s.disk, 512)
	mkfs(t, "ext4", l.dev)
	inside := mountWritable(t, l.dev, "ext4")

	path, err := exec.LookPath("fio")
	if err != nil {
		t.Fatal(err)
	}
	fio := exec.Command(g.wrap(t, path), "--name=writeback", "--directory="+inside, fmt.Sprint("--numjobs=", jobs),
		fmt.Sprint("--size=", size), "--thread", "--group_reporting", "--aux-path="+root, "--ioengine=psync", "--rw=randwrite", "--bsrange=4k-256k",
		"--fallocate=none", "--end_fsync=1", "--verify=crc32c", "--verify_fatal=1")
	var out logBuffer
	fio.Stdout, fio.Stderr = &out, &out
	fio.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := fio.Start(); err != nil {
		t.Fatal(err)
	}
	if !within(2*time.Minute, func() { err = fio.Wait() }) {
		// Nothing that waits in the kernel for the disk can be killed before the disk is gone.
		if err := os.WriteFile(connection, []byte("1"), 0o200); err != nil {
			t.Error(err)
		}
		fio.Process.Kill()
		t.Fatalf("no end of the writing in sight\n%s", out.String())
	}
	if err != nil {
		t.Errorf("fio: %v\n%s", err, out.String())
	}
	if !s.running() {
		t.Fatalf("the program has ended: %v\n%s", s.cmd.ProcessState, s.log.String())
	}
	n := g.short(t)
	t.Logf("memory was short %d times", n)
	if n == 0 {
		t.Error("memory was never short, so this shows nothing")
	}
	unmount(t, inside)
	fsck(t, "ext4", l.dev)
	l.detach(t)
	s.end(t)
	checkClean(t, img)
}
