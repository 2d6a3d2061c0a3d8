package test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
)

// proportional returns the memory of a process in bytes, with its share of what several use.
func proportional(t *testing.T, pid int) int64 {
	t.Helper()
	return memory(t, pid, "smaps_rollup", "Pss")
}

// Many disks of one parent, each mounted for writing and idle, take 12 MiB of memory each at the most, both processes
// together, and show what was written to each.
func TestManyChildren(t *testing.T) {
	const children, limit = 16, 12 << 20
	requireSandbox(t, release.serve(t, create(t, "1MiB"), "-o", "ro"))
	parent := create(t, "1GiB", "--block-size", "2MiB")
	scatter(t, parent, 21, 50)
	var mounts []*served
	for i := range children {
		img := filepath.Join(filepath.Dir(parent), fmt.Sprintf("child%d.avhdx", i))
		mustVhdxfs(t, "create", "--parent", parent, img)
		s := release.serve(t, img, "-o", "idle_clean=1")
		f := openDisk(t, s.disk, 0)
		if _, err := f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 64<<10), 77<<10); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(make([]byte, 8*mib), int64(i)*53*mib); err != nil {
			t.Fatal(err)
		}
		f.Close()
		mounts = append(mounts, s)
	}
	var all int64
	for i, s := range mounts {
		all += proportional(t, s.cmd.Process.Pid) + proportional(t, monitorOf(t, s.cmd.Process.Pid))
		if got := readAt(t, s.disk, 77<<10, 64<<10); !bytes.Equal(got, bytes.Repeat([]byte{byte(i + 1)}, 64<<10)) {
			t.Errorf("child %d shows other bytes than were written", i)
		}
	}
	t.Logf("%.1f MiB for each mount", float64(all)/children/mib)
	if all > children*limit {
		t.Errorf("%d KiB for each mount, want at most %d", all/children>>10, limit>>10)
	}
}
