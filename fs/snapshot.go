package fs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vhdxfs/vhdx"
)

// The extended attribute user.vhdx.snapshot of both nodes is how a mount is told to freeze its image and to go on in a
// child: it is set to the JSON of a SnapshotRequest, and read as that of a Snapshot. Root and the owner of the process
// alone may set it. It is not there before the first one.
const snapshotXAttr = "snapshot"

// A SnapshotRequest asks for a snapshot.
type SnapshotRequest struct {
	ID          string   `json:"id"`   // by which the answer is known
	Name        string   `json:"name"` // of the new file, in the folder of the image; "" chooses one
	KeepName    bool     `json:"keep_name"`
	ParentPaths []string `json:"parent_paths,omitempty"`
}

// A Snapshot is how far one is that is under way, or was the last.
type Snapshot struct {
	ID      string               `json:"id"`
	Running bool                 `json:"running"`
	Result  *vhdx.SnapshotResult `json:"result,omitempty"`
	Error   string               `json:"error,omitempty"`
	Refused bool                 `json:"refused,omitempty"` // because of what was asked for, or for want of permission

	// Those that ended before it, the last first, so that each asker finds his own where another has followed at once.
	Earlier []Snapshot `json:"earlier,omitempty"`
}

// maxEarlier is how many outcomes are kept besides the last. Who waits for one asks at least twice a second.
const maxEarlier = 8

// A snapshotter makes one snapshot at a time. Like that of a compaction, its work is not done in the request: the
// kernel would hold who has asked, also where the image is on a disk that hangs.
type snapshotter struct {
	disk    Disk
	running sync.WaitGroup

	mu    sync.Mutex // guards what follows
	state *Snapshot
	ended bool // no further one may begin
}

// set begins the snapshot that data asks for. It returns EBUSY while one is under way.
func (s *snapshotter) set(data []byte) fuse.Status {
	var r SnapshotRequest
	if json.Unmarshal(data, &r) != nil {
		return fuse.EINVAL
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.state != nil && s.state.Running {
		return fuse.EBUSY
	}
	s.state = &Snapshot{ID: r.ID, Running: true, Earlier: s.outcomes()}
	s.running.Go(func() {
		result, err := s.disk.Snapshot(context.Background(), r.Name, vhdx.SnapshotOptions{KeepName: r.KeepName, ParentPaths: r.ParentPaths})
		s.mu.Lock()
		defer s.mu.Unlock()
		s.state = &Snapshot{ID: r.ID, Result: result, Earlier: s.state.Earlier}
		if err != nil {
			s.state.Error = err.Error()
			s.state.Refused = errors.Is(err, vhdx.ErrOptions) || errors.Is(err, iofs.ErrExist) || errors.Is(err, iofs.ErrPermission)
		}
	})
	return fuse.OK
}

// outcomes returns those that there are so far, the last first. The caller holds mu.
func (s *snapshotter) outcomes() []Snapshot {
	if s.state == nil {
		return nil
	}
	last := *s.state
	last.Earlier = nil
	all := append([]Snapshot{last}, s.state.Earlier...)
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
	for err == nil && len(b) > maxXAttrSize && len(told.Earlier) > 0 { // names can be long
		told.Earlier = told.Earlier[:len(told.Earlier)-1]
		b, err = json.Marshal(told)
	}
	if err != nil {
		return nil
	}
	return map[string]string{snapshotXAttr: string(b)}
}

// TellSnapshot has the mount at mountPoint begin a snapshot. The error is one of those of TellCompaction.
func TellSnapshot(mountPoint string, r SnapshotRequest) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return tell(mountPoint, snapshotXAttr, b)
}

// AskSnapshot returns how far the snapshot of the mount at mountPoint is that was asked for with id; the last one, where
// that is not known any more.
func AskSnapshot(mountPoint, id string) (*Snapshot, error) {
	text, err := Attribute(mountPoint, snapshotXAttr)
	if err != nil {
		return nil, err
	}
	s := new(Snapshot)
	if err := json.Unmarshal([]byte(text), s); err != nil {
		return nil, fmt.Errorf("what the mount at %s says of its snapshot: %w", mountPoint, err)
	}
	if i := slices.IndexFunc(s.Earlier, func(e Snapshot) bool { return e.ID == id }); s.ID != id && i >= 0 {
		return &s.Earlier[i], nil
	}
	return s, nil
}

// tell sets an attribute of the mount at mountPoint.
func tell(mountPoint, name string, value []byte) error {
	// A mount that hangs would take the caller with it; one that has just answered will take this, too.
	if _, err := Attribute(mountPoint, "pid"); err != nil {
		return err
	}
	// Of the directory only root may set one, since nobody may write to it.
	disk := filepath.Join(mountPoint, FileName)
	if err := unix.Lsetxattr(disk, xattrPrefix+name, value, 0); err != nil {
		return &os.PathError{Op: name, Path: disk, Err: err}
	}
	return nil
}
