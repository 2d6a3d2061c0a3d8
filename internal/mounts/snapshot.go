package mounts

import (
	"slices"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// The extended attribute user.vhdx.snapshot of both nodes is how a mount is told to freeze its image and to go on in a
// child: it is set to the JSON of a SnapshotRequest, and read as that of a Snapshot. Root and the owner of the process
// alone may set it. It is not there before the first one.
const SnapshotXAttr = "snapshot"

// A SnapshotRequest asks for a snapshot.
type SnapshotRequest struct {
	ID          string   `json:"id"`   // by which the answer is known
	Name        string   `json:"name"` // of the new file, in the directory of the image; "" chooses one
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

// TellSnapshot has the mount at mountPoint begin a snapshot. The error is one of those of TellCompaction.
func TellSnapshot(mountPoint string, r SnapshotRequest) error {
	return tellRequest(mountPoint, SnapshotXAttr, r)
}

// AskSnapshot returns how far the snapshot of the mount at mountPoint is that was asked for with id; the last one, where
// that is not known any more.
func AskSnapshot(mountPoint, id string) (*Snapshot, error) {
	s, err := askState[Snapshot](mountPoint, SnapshotXAttr)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(s.Earlier, func(e Snapshot) bool { return e.ID == id }); s.ID != id && i >= 0 {
		return &s.Earlier[i], nil
	}
	return s, nil
}
