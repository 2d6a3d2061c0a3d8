package cli

import (
	"context"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"testing"

	"github.com/vhdxfs/vhdxfs/internal/monitor"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// programVariable is the environment variable that makes the test program run as vhdxfs.
const programVariable = "_VHDXFS_TEST_PROGRAM"

// TestMain makes the test program serve a mount in the background when startBackground starts it again, or be its
// monitor, and run as vhdxfs when a test wants that, or ask a mount.
func TestMain(m *testing.M) {
	if status, ran := mounts.Answer(os.Args[1:], os.Stdout); ran {
		os.Exit(status)
	}
	if os.Getenv(readyVariable) != "" || monitor.Is(os.Args[1:]) || os.Getenv(programVariable) != "" {
		os.Exit(Run(context.Background(), os.Args, os.Stdout, os.Stderr))
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400) // collecting garbage took a third of the time
	}
	os.Exit(m.Run())
}

// A result is what a run of the program wrote, and its exit status.
type result struct {
	stdout, stderr string
	status         int
}

func run(t *testing.T, args ...string) result {
	t.Helper()
	dir := t.TempDir()
	var files [2]*os.File
	for i := range files {
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	r := result{status: Run(t.Context(), append([]string{"vhdxfs"}, args...), files[0], files[1])}
	for i, to := range []*string{&r.stdout, &r.stderr} {
		text, err := os.ReadFile(files[i].Name())
		if err != nil {
			t.Fatal(err)
		}
		*to = string(text)
	}
	return r
}

// newImage makes an image by the create command.
func newImage(t *testing.T, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "new.vhdx")
	if r := run(t, append(append([]string{"create", "--size", "64M"}, args...), path)...); r.status != 0 {
		t.Fatalf("create: status %d, %s", r.status, r.stderr)
	}
	return path
}

// damage overwrites bytes of a file with others than it has.
func damage(t *testing.T, path string, off int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, n)
	if _, err := f.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	for i := range p {
		p[i] ^= 0x55
	}
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

// File offsets of the two headers and of the region tables (MS-VHDX 2.2).
const (
	header1 = 64 << 10
	header2 = 128 << 10
	table1  = 192 << 10
)
