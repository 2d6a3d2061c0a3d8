package test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What the README says of other programs, in its comparison, they do. Where a newer version of one does better, this fails, and
// the table has to change.
func TestComparedPrograms(t *testing.T) {
	requireFUSE(t)
	requireTools(t, "qemu-nbd", "qemu-io", "vhdimount")
	data := bytes.Repeat([]byte("compared"), mib/8)
	write := func(t *testing.T, s *served) *os.File {
		t.Helper()
		f := openDisk(t, s.disk, 0)
		if _, err := f.WriteAt(data, 3*mib); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		return f
	}
	written := func(t *testing.T, options ...string) string {
		t.Helper()
		img := create(t, "16MiB", options...)
		s := serve(t, img)
		write(t, s).Close()
		s.end(t)
		return img
	}

	t.Run("writes", func(t *testing.T) {
		img := written(t, "--block-size", "1MiB")
		t.Run("qemu-nbd", func(t *testing.T) {
			_, socket := nbdHolds(t, img)
			nbdDoes(t, socket, "write -P 7 5M 1M", "flush", "read -P 7 5M 1M")
		})
		want := sha256File(t, readOnly(t, img).disk)
		disk, end := libvhdi(t, img)
		if f, err := os.OpenFile(disk, os.O_RDWR, 0); err == nil {
			if _, err := f.WriteAt([]byte{1}, 0); err == nil && f.Sync() == nil {
				t.Error("libvhdi writes")
			}
			f.Close()
		}
		end()
		if got := libvhdiSum(t, img); got != want {
			t.Error("libvhdi reads something else")
		}
	})
	t.Run("differencing images", func(t *testing.T) {
		img := childOf(t, written(t), "16MiB")
		s := serve(t, img)
		write(t, s).Close()
		want := sha256File(t, s.disk)
		s.end(t)
		nbdRefuses(t, img)
		if libvhdiSum(t, img) != want {
			t.Error("libvhdi reads something else")
		}
	})
	t.Run("sectors of 4096 bytes", func(t *testing.T) {
		img := written(t, "--logical-sector-size", "4096")
		nbdRefuses(t, img)
		if libvhdiSum(t, img) != sha256File(t, serve(t, img).disk) {
			t.Error("libvhdi reads something else")
		}
	})
	t.Run("image not closed cleanly", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root, to unmount what is left behind")
		}
		img := create(t, "16MiB")
		s := serveToKill(t, img, "-o", "commit=0,idle_clean=0")
		f := write(t, s)
		want := sha256File(t, s.disk)
		s.kill()
		f.Close()
		before := sha256File(t, img)
		nbdRefuses(t, img)
		if libvhdiSum(t, img) == want {
			t.Error("libvhdi replays the log")
		}
		if got := sha256File(t, readOnly(t, img).disk); got != want {
			t.Error("the log is not replayed in memory")
		}
		unchanged(t, img, before)
	})
	t.Run("trim", func(t *testing.T) {
		img := create(t, "64MiB", "--block-size", "1MiB")
		_, socket := nbdHolds(t, img, "--discard=unmap")
		nbdDoes(t, socket, "write -P 7 0 32M", "flush")
		full := used(t, img)
		nbdDoes(t, socket, "discard 0 32M", "flush")
		if used(t, img) < full-mib {
			t.Error("QEMU makes the image smaller")
		}
	})
}

// nbdDoes lets qemu-io do the commands on an export of qemu-nbd.
func nbdDoes(t *testing.T, socket string, commands ...string) {
	t.Helper()
	args := []string{"-f", "raw"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if out := must(t, "qemu-io", append(args, "nbd+unix:///?socket="+socket)...); strings.Contains(out, "fail") {
		t.Fatalf("qemu-io:\n%s", out)
	}
}

// nbdRefuses fails the test if qemu-nbd exports an image for reading.
func nbdRefuses(t *testing.T, img string) {
	t.Helper()
	cmd := exec.Command("qemu-nbd", "--read-only", "--format=vhdx", "--socket="+filepath.Join(t.TempDir(), "nbd"), img)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(patience, func() { cmd.Process.Signal(syscall.SIGTERM) })
	if err := cmd.Wait(); !stop.Stop() || err == nil {
		t.Errorf("qemu-nbd exports %s", filepath.Base(img))
	}
}
