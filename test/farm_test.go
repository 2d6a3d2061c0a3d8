package test

import (
	"bytes"
	"fmt"
	"os"
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

// A cache of block tables that is full, and whose pages come and go, takes one and a half times its bound at the most, beside
// what the idle mount has.
func TestFullCacheKeepsItsBound(t *testing.T) {
	const (
		bound   = 32 << 20
		pages   = 3 * bound / 4096 / 2 // of the table
		entries = 512                  // in each
	)
	img := create(t, "64TiB", "--block-size", "1MiB")
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	const zero = 2 // the state of a block that reads as zero: no page of the table holds nothing
	table := batEntry(t, img, 0)
	for i := range int64(pages) {
		if _, err := f.WriteAt([]byte{zero}, table+8*(i*entries+entries/2)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s := release.serve(t, img, "-o", "ro,cache_size=32M")
	d, err := os.Open(s.disk)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	read := func(page int64) {
		if _, err := d.ReadAt(make([]byte, 512), (page*entries+1)*mib); err != nil {
			t.Fatal(err)
		}
	}
	read(0)
	pid := s.cmd.Process.Pid
	idle := memory(t, pid, "smaps_rollup", "Rss")
	for i := range int64(2 * pages) {
		read(i * 7919 % pages)
	}
	took := memory(t, pid, "smaps_rollup", "Rss") - idle
	t.Logf("%d MiB, beside %d MiB", took/mib, idle/mib)
	if took < bound {
		t.Errorf("only %d KiB; the test does not fill the cache", took>>10)
	}
	if took > bound*3/2 {
		t.Errorf("%d KiB for a cache of %d KiB", took>>10, bound>>10)
	}
}
