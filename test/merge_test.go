package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// writtenChild makes an image of the given size with some data, and a child of it that holds n bytes more. It returns
// their paths and the disk that the child shows, as a raw file.
func writtenChild(t *testing.T, size string, n int64) (base, child, raw string) {
	t.Helper()
	base = create(t, size, "--block-size", "1MiB")
	write := func(img string, pattern byte, off, n int64) {
		s := serve(t, img)
		f := openDisk(t, s.disk, 0)
		writePattern(t, f, pattern, off, n)
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		s.end(t)
	}
	write(base, 0x11, mib, 3*mib)
	child = childOf(t, base, size)
	write(child, 0x22, 2*mib+512, n)
	raw = filepath.Join(t.TempDir(), "want.raw")
	mustVhdxfs(t, "convert", child, raw)
	return base, child, raw
}

// What a merge makes is an image for QEMU, and the child is one for libvhdi.
func TestMergeForOthers(t *testing.T) {
	t.Parallel()
	requireTools(t, "qemu-img")
	base, child, raw := writtenChild(t, "64MiB", 9*mib)
	mustVhdxfs(t, "merge", child)
	checkClean(t, base)
	must(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", base, raw)
	mustVhdxfs(t, "compare", child, raw)

	frozen := filepath.Join(filepath.Dir(base), "frozen.vhdx")
	mustVhdxfs(t, "snapshot", "--keep-name", "--force", base, frozen) // the child is told below
	checkClean(t, base)
	checkClean(t, frozen)
	must(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", frozen, raw)
	requireTools(t, "vhdiinfo")
	for _, img := range []string{base, child} {
		mustVhdxfs(t, "set-parent", img, frozen)
		if out := must(t, "vhdiinfo", img); !strings.Contains(out, "Parent filename") || !strings.Contains(out, "frozen.vhdx") {
			t.Errorf("vhdiinfo %s:\n%s", img, out)
		}
	}
}

// Images in use are left alone, and the message tells by whom they are used.
func TestChainCommandsKeepTheLocks(t *testing.T) {
	t.Parallel()
	base, child, raw := writtenChild(t, "16MiB", 4*mib)
	sums := map[string]string{base: sha256File(t, base), child: sha256File(t, child)}
	for _, mounted := range []struct {
		img     string
		options []string
		refused [][]string
	}{
		{child, nil, [][]string{{"set-parent", child, base}}},
		{child, []string{"-o", "ro"}, [][]string{{"merge", child}, {"set-parent", child, base}}},
		{base, []string{"-o", "ro"}, [][]string{{"merge", child}}},
	} {
		s := serve(t, mounted.img, mounted.options...)
		for _, args := range mounted.refused {
			refusedBy(t, s.cmd.Process.Pid, mounted.img, args...)
		}
		s.end(t)
		for img, sum := range sums {
			unchanged(t, img, sum)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(base)); err != nil || len(left) != 2 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	mustVhdxfs(t, "merge", "--delete", child)
	mustVhdxfs(t, "compare", "--strict", base, raw)
}

// On a full disk a merge fails, the child shows what it did, and with space again the merge can be run again.
func TestMergeToAFullDisk(t *testing.T) {
	t.Parallel()
	for _, fstype := range []string{"tmpfs", "ext4"} {
		t.Run(fstype, func(t *testing.T) {
			made, child, raw := writtenChild(t, "64MiB", 20*mib)
			dir := smallFS(t, fstype, "44")
			base := filepath.Join(dir, filepath.Base(made))
			must(t, "cp", "--sparse=always", made, base)
			ballast := filepath.Join(dir, "ballast")
			must(t, "dd", "if=/dev/zero", "of="+ballast, "bs=1M", "count=24", "status=none")
			if err := os.Remove(made); err != nil {
				t.Fatal(err)
			}
			o := []string{"-o", "parent_dir=" + dir}
			args := append([]string{"merge"}, append(o, child)...)
			compare := append([]string{"compare", "--strict"}, append(o, child, raw)...)
			for range 2 {
				r := vhdxfs(t, args...)
				if r.status != 2 || !strings.Contains(r.stderr, "no space left") || strings.Count(r.stderr, "\n") != 1 {
					t.Errorf("exit status %d, %q", r.status, r.stderr)
				}
				mustVhdxfs(t, compare...)
				mustVhdxfs(t, "check", base)
			}
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			mustVhdxfs(t, args...)
			mustVhdxfs(t, compare...)
			mustVhdxfs(t, "compare", "--strict", base, raw)
			checkClean(t, base)
		})
	}
}

// Whatever signal ends a merge, the child shows what it did, and the merge can be run again.
func TestKilledMerge(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			base, child, raw := writtenChild(t, "256MiB", 160*mib)
			begun := used(t, base)
			cmd := exec.Command(program.path(t), "merge", child)
			var stderr logBuffer
			cmd.Stderr = &stderr
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			within(patience, func() {
				for used(t, base) < begun+16*mib && len(ended) == 0 {
					time.Sleep(time.Millisecond)
				}
			})
			_ = cmd.Process.Signal(sig) // it may have been quicker
			<-ended                     // how, the process state tells
			state := cmd.ProcessState
			t.Logf("%v, %d bytes written", state, used(t, base)-begun)
			if sig != syscall.SIGKILL && !state.Success() && (state.ExitCode() != 130 || stderr.String() != "vhdxfs: interrupted; "+child+" shows the same disk as before; run merge again\n") {
				t.Errorf("%v, %q", state, stderr.String())
			}
			mustVhdxfs(t, "compare", "--strict", child, raw)
			mustVhdxfs(t, "merge", "--delete", child)
			mustVhdxfs(t, "compare", "--strict", base, raw)
			checkClean(t, base)
		})
	}
}
