package vhdx

import (
	"errors"
	"flag"
	"os"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain lets garbage grow: the tests make images in memory by the hundreds, and collecting them took a third of the time.
// With -short their files are in memory, too, if there is room.
func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() && os.Getenv("TMPDIR") == "" && os.Getenv("GOTMPDIR") == "" && roomInMemory() {
		os.Setenv("TMPDIR", memoryDir)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
		debug.SetMemoryLimit(2 << 30) // from where on it is collected as usual
	}
	os.Exit(m.Run())
}

const memoryDir = "/dev/shm"

func roomInMemory() bool {
	var st unix.Statfs_t
	err := errors.Join(unix.Statfs(memoryDir, &st), unix.Access(memoryDir, unix.W_OK))
	return err == nil && st.Type == unix.TMPFS_MAGIC && st.Bavail >= 2<<30/uint64(st.Bsize)
}
