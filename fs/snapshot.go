package fs

import (
	"context"
	"encoding/json"
	"errors"
	iofs "io/fs"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// maxEarlier is how many outcomes are kept besides the last. A program that waits for one asks at least twice a second.
const maxEarlier = 8

// A snapshotter makes one snapshot at a time. Like that of a compaction, its work is not done in the request: the
// kernel would hold the program that has asked, also where the image is on a disk that hangs.
type snapshotter struct {
	disk    Control
	running sync.WaitGroup

	mu    sync.Mutex // guards what follows
	state *mounts.Snapshot
	ended bool // no further one may begin
}

// set begins the snapshot that data asks for. It returns EBUSY while one is under way.
func (s *snapshotter) set(data []byte) fuse.Status {
	var r mounts.SnapshotRequest
	if json.Unmarshal(data, &r) != nil {
		return fuse.EINVAL
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.state != nil && s.state.Running {
		return fuse.EBUSY
	}
	s.state = &mounts.Snapshot{ID: r.ID, Running: true, Earlier: s.outcomes()}
	s.running.Go(func() {
		defer fault.Then(func(err error) { s.finish(r.ID, nil, err) })
		result, err := s.disk.Snapshot(context.Background(), r.Name, vhdx.SnapshotOptions{KeepName: r.KeepName, ParentPaths: r.ParentPaths})
		s.finish(r.ID, result, err)
	})
	return fuse.OK
}

// finish notes how the snapshot ended.
func (s *snapshotter) finish(id string, result *vhdx.SnapshotResult, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = &mounts.Snapshot{ID: id, Result: result, Earlier: s.state.Earlier}
	if err != nil {
		s.state.Error = err.Error()
		s.state.Refused = errors.Is(err, vhdx.ErrOptions) || errors.Is(err, iofs.ErrExist) || errors.Is(err, iofs.ErrPermission)
	}
}

// outcomes returns those that there are so far, the last first. The caller holds mu.
func (s *snapshotter) outcomes() []mounts.Snapshot {
	if s.state == nil {
		return nil
	}
	last := *s.state
	last.Earlier = nil
	all := append([]mounts.Snapshot{last}, s.state.Earlier...)
	return all[:min(len(all), maxEarlier)]
}

// end lets no further snapshot begin, and returns when none is under way.
func (s *snapshotter) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.running.Wait()
}

// xattrs is the attribute that tells of a snapshot, where there is something to tell.
func (s *snapshotter) xattrs() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == nil {
		return nil
	}
	told := *s.state
	b, err := json.Marshal(told)
	for err == nil && len(b) > mounts.MaxXAttrSize && len(told.Earlier) > 0 { // names can be long
		told.Earlier = told.Earlier[:len(told.Earlier)-1]
		b, err = json.Marshal(told)
	}
	if err != nil {
		return nil
	}
	return map[string]string{mounts.SnapshotXAttr: string(b)}
}
