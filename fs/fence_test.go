package fs

import (
	"context"
	"errors"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// An endlessDisk is a fakeDisk whose work on the whole image is called like all else.
type endlessDisk struct{ *fakeDisk }

func (d endlessDisk) Compact(context.Context, vhdx.CompactOptions) (*vhdx.CompactResult, error) {
	return &vhdx.CompactResult{Moved: 7}, d.called("compact", nil)
}

func (d endlessDisk) Merge(context.Context, string, vhdx.MergeOptions) (*vhdx.MergeResult, error) {
	return &vhdx.MergeResult{}, d.called("merge", nil)
}

// Each change reaches the disk until it is closed to changes, with its result, and none does later.
func TestFence(t *testing.T) {
	changes := map[string]func(d Disk) (bool, error){
		"write[1 ab]":   func(d Disk) (bool, error) { n, err := d.WriteAt([]byte("ab"), 1); return n == 2, err },
		"zero[1 2]":     func(d Disk) (bool, error) { return true, d.Zero(1, 2) },
		"discard[1 2]":  func(d Disk) (bool, error) { return true, d.Discard(1, 2) },
		"allocate[1 2]": func(d Disk) (bool, error) { return true, d.Allocate(1, 2) },
		"grow[131072]":  func(d Disk) (bool, error) { return true, d.Grow(t.Context(), 128<<10) },
		"sync[]":        func(d Disk) (bool, error) { return true, d.Sync() },
		"compact[]": func(d Disk) (bool, error) {
			r, err := d.Compact(t.Context(), vhdx.CompactOptions{})
			return r != nil && r.Moved == 7, err
		},
		"merge[]": func(d Disk) (bool, error) {
			r, err := d.Merge(t.Context(), "c", vhdx.MergeOptions{})
			return r != nil, err
		},
		"snapshot[b false []]": func(d Disk) (bool, error) {
			r, err := d.Snapshot(t.Context(), "b", vhdx.SnapshotOptions{})
			return r != nil && r.Child == "b", err
		},
	}
	for call, change := range changes {
		inner := newWritable(map[string]error{})
		d := &fencedDisk{Disk: endlessDisk{inner}}
		if ok, err := change(d); err != nil || !ok {
			t.Errorf("%s: %v, result %t", call, err, ok)
		}
		if got := inner.take(); got != call {
			t.Errorf("%s becomes %q", call, got)
		}
		d.close()
		if _, err := change(d); !errors.Is(err, errFenced) {
			t.Errorf("%s after the close: %v", call, err)
		}
		if got := inner.take(); got != "" {
			t.Errorf("%s after the close becomes %q", call, got)
		}
	}
}

// The close waits for changes that are under way.
func TestFenceWaits(t *testing.T) {
	d := &fencedDisk{Disk: newWritable(nil)}
	closed := make(chan struct{})
	_ = d.change(func() error {
		go func() {
			d.close()
			close(closed)
		}()
		for d.mu.TryRLock() { // until the close waits
			d.mu.RUnlock()
		}
		select {
		case <-closed:
			t.Error("it is closed while a change is under way")
		default:
		}
		return nil
	})
	<-closed
}
