package vhdx

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// holdExclusive opens the image file and takes the locks of a writer until the test ends.
func holdExclusive(t *testing.T, path string) {
	t.Helper()
	f, err := imagefile.Open(path, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Lock(LockOn, imagefile.Exclusive); err != nil {
		t.Fatal(err)
	}
}

func TestSharedOpens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image.vhdx")
	build(spec{}).writeTo(t, path)
	for range 3 {
		im, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer im.Close()
	}
}

func TestLockedByAWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image.vhdx")
	build(spec{}).writeTo(t, path)
	holdExclusive(t, path)
	_, err := Open(path, Options{})
	if !errors.Is(err, ErrLocked) || errors.Is(err, ErrCorrupt) {
		t.Fatalf("Open: %v; want ErrLocked alone", err)
	}
	if pid := fmt.Sprintf("process %d", os.Getpid()); !strings.Contains(err.Error(), pid) || !strings.Contains(err.Error(), path) {
		t.Errorf("the error names not the file, or not %s: %v", pid, err)
	}
	if _, err := Check(path, Options{}); !errors.Is(err, ErrLocked) {
		t.Errorf("Check: %v; want ErrLocked", err)
	}
	for _, mode := range []LockMode{LockTry, LockOff} {
		im, err := Open(path, Options{Lock: mode})
		if err != nil {
			t.Fatalf("Open with lock=%s: %v", mode, err)
		}
		im.Close()
	}
}

func TestReaderKeepsWritersOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image.vhdx")
	build(spec{}).writeTo(t, path)
	im, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	writer, err := imagefile.Open(path, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if err := writer.Lock(LockOn, imagefile.Exclusive); !errors.Is(err, ErrLocked) {
		t.Errorf("a writer beside a reader: %v; want ErrLocked", err)
	}
	// A refused writer leaves no lock behind.
	other, err := Open(path, Options{})
	if err != nil {
		t.Fatalf("a reader after a refused writer: %v", err)
	}
	other.Close()
	im.Close()
	if err := writer.Lock(LockOn, imagefile.Exclusive); err != nil {
		t.Errorf("a writer when the readers are gone: %v", err)
	}
}

func TestParentsAreLocked(t *testing.T) {
	dir := t.TempDir()
	path := chain{build(spec{typ: Differencing}), build(spec{})}.writeTo(t, dir)
	im, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	writer, err := imagefile.Open(filepath.Join(dir, "parent.vhdx"), os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if err := writer.Lock(LockOn, imagefile.Exclusive); !errors.Is(err, ErrLocked) {
		t.Errorf("a writer of the parent: %v; want ErrLocked", err)
	}
	im.Close()
	if err := writer.Lock(LockOn, imagefile.Exclusive); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{}); !errors.Is(err, ErrLocked) || errors.Is(err, ErrCorrupt) {
		t.Errorf("a child whose parent is being written: %v; want ErrLocked alone", err)
	}
}

// A failed open and a Close leave neither locks nor open files.
func TestNothingStaysOpen(t *testing.T) {
	dir := t.TempDir()
	good := chain{build(spec{typ: Differencing}), build(spec{})}.writeTo(t, dir)
	bad := filepath.Join(dir, "bad.vhdx")
	build(spec{typ: Differencing, locator: [][2]string{linkage, {ondisk.KeyRelativePath, "parent.vhdx"}, {ondisk.KeyVolumePath, "image.vhdx"}}, dataWrite: otherGUID}).writeTo(t, bad)
	wrong := build(spec{typ: Differencing, locator: parentEntries("image.vhdx", testLogGUID)})
	wrong.writeTo(t, filepath.Join(dir, "wrong.vhdx"))
	before := openFiles(t, dir)
	for _, path := range []string{good, bad, filepath.Join(dir, "wrong.vhdx"), filepath.Join(dir, "none.vhdx")} {
		if im, err := Open(path, Options{}); err == nil {
			if err := im.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if err := im.Close(); err != nil {
				t.Errorf("second Close: %v", err)
			}
		}
		if _, err := Check(path, Options{}); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Check(%s): %v", path, err)
		}
	}
	if after := openFiles(t, dir); after != before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}

// openFiles returns how many files below dir this process has open.
func openFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, dir) {
			n++
		}
	}
	return n
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	for _, path := range []string{t.TempDir(), "/dev/null", "/nonexistent/image.vhdx"} {
		if im, err := Open(path, Options{}); err == nil {
			im.Close()
			t.Errorf("%s opened", path)
		}
	}
}

func needQEMU(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
}

// qemu-io and we keep each other out, as qemu-io and a virtual machine do.
func TestLocksAreThoseOfQEMU(t *testing.T) {
	needQEMU(t, "qemu-io", "qemu-img")
	path := filepath.Join(t.TempDir(), "image.vhdx")
	if err := Create(path, CreateOptions{Size: 8 * ondisk.MiB}); err != nil {
		t.Fatal(err)
	}

	t.Run("qemu-io has it", func(t *testing.T) {
		for _, c := range []struct {
			args   []string
			locked bool
		}{{[]string{"-f", "vhdx", path}, true}, {[]string{"-r", "-f", "vhdx", path}, false}} {
			stop := startQEMUIO(t, c.args...)
			im, err := Open(path, Options{})
			switch {
			case err == nil && c.locked:
				t.Error("Open beside qemu-io that may write gave no error")
			case c.locked && (!errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "qemu-io")):
				t.Errorf("Open beside qemu-io: %v; want ErrLocked with its name", err)
			case !c.locked && err != nil:
				t.Errorf("Open beside qemu-io that reads: %v", err)
			}
			if err == nil {
				im.Close()
			}
			stop()
		}
	})
	t.Run("we have it", func(t *testing.T) {
		im, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer im.Close()
		if out, err := exec.Command("qemu-io", "-f", "vhdx", "-c", "write 0 4096", path).CombinedOutput(); !strings.Contains(string(out), "lock") {
			t.Errorf("qemu-io writes beside our reader: %v\n%s", err, out)
		}
		if out, err := exec.Command("qemu-img", "info", path).CombinedOutput(); err != nil {
			t.Errorf("qemu-img info beside our reader: %v\n%s", err, out)
		}
	})
}

// startQEMUIO starts qemu-io and returns when it has the image open. The returned function ends it.
func startQEMUIO(t *testing.T, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command("qemu-io", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		in.Close()
		io.Copy(io.Discard, out)
		cmd.Wait()
	}
	t.Cleanup(stop)
	// It answers a command only when the image is open.
	if _, err := io.WriteString(in, "length\n"); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "MiB") {
			return stop
		}
	}
	t.Fatal("qemu-io ended without an answer")
	return nil
}
