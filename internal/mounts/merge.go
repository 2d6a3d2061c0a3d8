package mounts

import "github.com/vhdxfs/vhdxfs/vhdx"

// The extended attribute user.vhdx.merge of both nodes is how a mount is told to merge images of its chain: it is set to the JSON
// of a MergeRequest, and read as that of a Merge. Root and the owner of the process alone may set it. It is not there before the
// first one.
const MergeXAttr = "merge"

// A MergeRequest asks for a merge, or for the end of the one that goes on.
type MergeRequest struct {
	ID       string `json:"id"` // by which the answer is known
	Stop     bool   `json:"stop,omitempty"`
	Child    string `json:"child"` // as the mount names it
	Into     string `json:"into,omitempty"`
	Delete   bool   `json:"delete,omitempty"`
	KeepName bool   `json:"keep_name,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
	Rate     int64  `json:"rate,omitempty"`    // bytes in a second
	Reflink  string `json:"reflink,omitempty"` // as the flag has it
	Force    bool   `json:"force,omitempty"`   // also if other children are lost
}

// A Merge is how far one is that goes on, or went on last. One that no program asks about during a minute is stopped.
type Merge = Job[vhdx.MergeResult]

// TellMerge has the mount at mountPoint begin or stop a merge. The error is one of those of TellCompaction.
func TellMerge(mountPoint string, r MergeRequest) error {
	return tellRequest(mountPoint, MergeXAttr, r)
}

// AskMerge returns how far the merge of the mount at mountPoint is.
func AskMerge(mountPoint string) (*Merge, error) { return askState[Merge](mountPoint, MergeXAttr) }
