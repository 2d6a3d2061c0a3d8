package vhdx

import (
	"path/filepath"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// The numbers of a known sequence of operations, and what each step adds to them.
func TestStats(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.vhdx")
	if err := Create(path, CreateOptions{Size: 64 * ondisk.MiB, BlockSize: ondisk.MiB}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(path, Options{Writable: true, DetectZeroes: true}) // nothing happens by itself
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	before := im.Stats()
	if before.FileSyncs != 0 || before.CacheMisses != 0 {
		t.Errorf("opening a clean image took %+v", before)
	}
	block := make([]byte, ondisk.MiB)
	for i := range block {
		block[i] = 1
	}
	write := func(off int64) error {
		_, err := im.WriteAt(block, off)
		return err
	}
	for _, step := range []struct {
		name string
		do   func() error
		want Stats // what it adds to the counters, and the gauges after it
	}{
		// The headers tell of a change of the file when the BAT page gets its space, and then of one of the disk.
		// Each time both are written and synced.
		{"a new block", func() error { return write(0) },
			Stats{FileSyncs: 2, HeaderUpdates: 1, BlocksAllocated: 1, DirtyPages: 1, AllocatedNow: ondisk.MiB}},
		{"another one", func() error { return write(5 * ondisk.MiB) },
			Stats{BlocksAllocated: 1, DirtyPages: 1, AllocatedNow: 2 * ondisk.MiB}},
		{"the same again", func() error { return write(5 * ondisk.MiB) },
			Stats{DirtyPages: 1, AllocatedNow: 2 * ondisk.MiB}},
		// An empty entry and its sync, both headers, then the entry for the BAT page.
		{"sync", im.Sync,
			Stats{FileSyncs: 4, HeaderUpdates: 1, LogEntries: 2, LoggedPages: 1, PagesInLog: 1, AllocatedNow: 2 * ondisk.MiB}},
		{"sync of nothing", im.Sync,
			Stats{PagesInLog: 1, AllocatedNow: 2 * ondisk.MiB}},
		{"trim", func() error { return im.Discard(0, ondisk.MiB) },
			Stats{BlocksFreed: 1, DirtyPages: 1, PagesInLog: 1, AllocatedNow: ondisk.MiB}},
		// One entry; then its page is put in place, the headers no longer name the log, and the file becomes shorter.
		{"clean", im.Clean,
			Stats{FileSyncs: 5, HeaderUpdates: 1, LogEntries: 1, LoggedPages: 1, Checkpoints: 1, AllocatedNow: ondisk.MiB}},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		after := im.Stats()
		got := Stats{
			FileSyncs:       after.FileSyncs - before.FileSyncs,
			HeaderUpdates:   after.HeaderUpdates - before.HeaderUpdates,
			LogEntries:      after.LogEntries - before.LogEntries,
			LoggedPages:     after.LoggedPages - before.LoggedPages,
			Checkpoints:     after.Checkpoints - before.Checkpoints,
			BlocksAllocated: after.BlocksAllocated - before.BlocksAllocated,
			BlocksFreed:     after.BlocksFreed - before.BlocksFreed,
			DirtyPages:      after.DirtyPages,
			PagesInLog:      after.PagesInLog,
			AllocatedNow:    after.AllocatedNow,
		}
		if got != step.want {
			t.Errorf("%s:\n got %+v\nwant %+v", step.name, got, step.want)
		}
		if after.CacheHits < before.CacheHits || after.CacheMisses < before.CacheMisses {
			t.Errorf("%s: lookups went back from %+v to %+v", step.name, before, after)
		}
		before = after
	}
}

// A page is missed once and then found; an image that is only read has no other numbers.
func TestStatsOfReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.vhdx")
	if err := Create(path, CreateOptions{Size: 64 * ondisk.MiB, BlockSize: ondisk.MiB, Type: Fixed}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	before := im.Stats()
	for range 3 {
		if _, err := im.ReadAt(make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
	}
	after := im.Stats()
	hits, misses := after.CacheHits-before.CacheHits, after.CacheMisses-before.CacheMisses
	if hits != 2 || misses != 1 || after.CachePages != 1 {
		t.Errorf("3 reads: %d hits, %d misses, %d pages; want 2, 1, 1", hits, misses, after.CachePages)
	}
	after.CacheHits, after.CacheMisses, after.CachePages = 0, 0, 0
	if want := (Stats{AllocatedNow: 64 * ondisk.MiB}); after != want {
		t.Errorf("%+v, want %+v", after, want)
	}
}
