package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The digest of a disk is that of sha256sum of its bytes, whatever holds them; and a list of blocks tells later which of them
// changed.
func TestHash(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "sha256sum")
	raw := randomRaw(t, 50*mib+4096, 21)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	want, _, _ := strings.Cut(must(t, "sha256sum", raw), " ")
	for name, options := range map[string][]string{
		"dynamic.vhdx": {"--block-size", "2M"}, "fixed.vhdx": {"--type", "fixed"}, "4096.vhdx": {"--logical-sector-size", "4096"},
	} {
		mustVhdxfs(t, append(append([]string{"convert"}, options...), raw, path(name))...)
	}
	mustVhdxfs(t, "snapshot", path("dynamic.vhdx"), path("child.avhdx"))
	for _, disk := range []string{raw, path("dynamic.vhdx"), path("fixed.vhdx"), path("4096.vhdx"), path("child.avhdx")} {
		if got := mustVhdxfs(t, "hash", disk); got != want+"  "+disk+"\n" {
			t.Errorf("%q, want %s", got, want)
		}
	}
	mustVhdxfs(t, "hash", "--blocks", path("list"), raw)
	mustVhdxfs(t, "hash", "--check", path("list"), path("4096.vhdx"))
	if got := mustVhdxfs(t, "hash", "--blocks", "-", "--quiet", path("child.avhdx")); got != must(t, "cat", path("list")) {
		t.Errorf("the list of the image is\n%s", got)
	}
	writeFile(t, path("sum"), []byte(mustVhdxfs(t, "hash", raw)))
	mustVhdxfs(t, "hash", "--check", path("sum"), path("fixed.vhdx"))

	// Also of a disk that is mounted and has changed.
	point := newDir(t)
	mustVhdxfs(t, path("child.avhdx"), point)
	defer unmount(t, point)
	disk := filepath.Join(point, "disk.raw")
	b := make([]byte, 1)
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(b, 33*mib+5); err != nil {
		t.Fatal(err)
	}
	b[0]++
	if _, err := f.WriteAt(b, 33*mib+5); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	changed, _, _ := strings.Cut(must(t, "sha256sum", disk), " ")
	for _, name := range []string{disk, point, path("child.avhdx")} {
		if got := mustVhdxfs(t, "hash", name); got != changed+"  "+name+"\n" || changed == want {
			t.Errorf("%q, want %s", got, changed)
		}
		r := vhdxfs(t, "hash", "--json", "--check", path("list"), name)
		var report struct {
			Check struct {
				Equal     bool
				Different int64 `json:"different_bytes"`
				Ranges    []struct{ Offset, Length int64 }
			}
		}
		if err := json.Unmarshal([]byte(r.stdout), &report); err != nil || r.status != differsStatus {
			t.Fatalf("status %d, %v\n%s%s", r.status, err, r.stdout, r.stderr)
		}
		if c := report.Check; c.Equal || len(c.Ranges) != 1 || c.Ranges[0].Offset != 33*mib || c.Different != mib {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if r := vhdxfs(t, "hash", "--check", path("sum"), point); r.status != differsStatus || !strings.Contains(r.stdout, changed) {
		t.Errorf("status %d, %q", r.status, r.stdout)
	}
}

// A check whose list comes through a pipe ends at a signal, whether nothing writes to the pipe or not all has come yet.
func TestHashCheckOfPipeIsInterrupted(t *testing.T) {
	t.Parallel()
	img, list, pipe := filepath.Join(t.TempDir(), "a.vhdx"), filepath.Join(t.TempDir(), "list"), filepath.Join(t.TempDir(), "pipe")
	mustVhdxfs(t, "convert", randomRaw(t, 3*mib, 4), img)
	mustVhdxfs(t, "hash", "--blocks", list, img)
	text := must(t, "cat", list)
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"", text[:70], text[:len(text)-20]} {
		var w *os.File
		if part != "" {
			var err error
			if w, err = os.OpenFile(pipe, os.O_RDWR, 0); err != nil { // which waits for no reader
				t.Fatal(err)
			}
			if _, err := w.WriteString(part); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(program.path(t), "hash", "--check", pipe, img)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the command to wait for the pipe", func() bool {
			if w == nil {
				waits, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/wchan", cmd.Process.Pid))
				return slices.ContainsFunc(waits, func(name string) bool {
					b, _ := os.ReadFile(name)
					return string(b) == "wait_for_partner" // as the kernel calls opening a FIFO that nothing writes to
				})
			}
			n, err := unix.IoctlGetInt(int(w.Fd()), unix.TIOCINQ)
			return err == nil && n == 0
		})
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		killed := time.AfterFunc(patience, func() { cmd.Process.Kill() })
		_ = cmd.Wait()
		killed.Stop()
		if status := cmd.ProcessState.ExitCode(); status != 130 {
			t.Errorf("%d bytes of the list: exit status %d, want 130", len(part), status)
		}
		if w != nil {
			w.Close()
		}
	}
}
