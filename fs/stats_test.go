package fs

import (
	"encoding/json"
	"maps"
	"strconv"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// Every request is counted once, under its kind, and none that failed but as an error.
func TestStats(t *testing.T) {
	d := newFakeDisk(t)
	d.writable = true
	d.fail = map[string]error{"allocate": unix.ENOSPC}
	f := newTestFileSystem(t, d, Options{})
	disk := fuse.InHeader{NodeId: diskNode}

	for _, r := range []struct {
		off uint64
		n   int
	}{{0, 4096}, {100, 256 << 10}, {1 << 20, 8192}, {2<<20 - 512, 1024}, {uint64(d.Size()) - 100, 4096}} {
		if _, s := readAll(t, f, r.off, r.n); !s.Ok() {
			t.Fatal(s)
		}
	}
	readAll(t, f, uint64(d.Size()), 4096) // the end of the file is nothing that was read
	for _, data := range [][][]byte{{make([]byte, 4096)}, {make([]byte, 10), make([]byte, 20)}} {
		if _, s := f.Writev(nil, &fuse.WriteIn{InHeader: disk}, data); !s.Ok() {
			t.Fatal(s)
		}
	}
	f.Open(nil, &fuse.OpenIn{InHeader: disk, Flags: unix.O_RDWR}, new(fuse.OpenOut))
	f.Fsync(nil, &fuse.FsyncIn{InHeader: disk})
	f.Lseek(nil, &fuse.LseekIn{InHeader: disk, Whence: unix.SEEK_HOLE}, new(fuse.LseekOut))
	for _, mode := range []uint32{
		unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
		unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE,
		unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE,
		0, // fails
	} {
		f.Fallocate(nil, &fuse.FallocateIn{InHeader: disk, Offset: 4096, Length: 1000, Mode: mode})
	}

	want := map[string]int64{
		"reads": 5, "read_bytes": 4096 + 256<<10 + 8192 + 1024 + 100, "zero_reads": 2, "spliced_reads": 1,
		"writes": 2, "written_bytes": 4096 + 30, "writers": 1, "syncs": 1, "seeks": 1,
		"discards": 1, "discarded_bytes": 1000, "zeroings": 2, "zeroed_bytes": 2000, "allocations": 0, "errors": 1,
		"cache_hits": 5, "dirty_pages": 2,
	}
	if !spliceable(256 << 10) {
		want["spliced_reads"] = 0
	}
	stats := f.stats()
	got := stats.Map()
	if len(got) != len(stats) {
		t.Errorf("%d names for %d numbers", len(got), len(stats))
	}
	for name, v := range got {
		if v != want[name] {
			t.Errorf("%s = %d, want %d", name, v, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}

	buf := make([]byte, mounts.MaxXAttrSize)
	n, s := f.GetXAttr(nil, &disk, "user.vhdx.stats", buf)
	var all map[string]int64
	if err := json.Unmarshal(buf[:n], &all); err != nil || !s.Ok() || !maps.Equal(all, got) {
		t.Errorf("user.vhdx.stats is %s, %v, %v; want %v", buf[:n], s, err, got)
	}
	n, s = f.GetXAttr(nil, &disk, "user.vhdx.stats.read_bytes", buf)
	if v, err := strconv.ParseInt(string(buf[:n]), 10, 64); err != nil || !s.Ok() || v != got["read_bytes"] {
		t.Errorf("user.vhdx.stats.read_bytes is %s, %v", buf[:n], s)
	}
}
