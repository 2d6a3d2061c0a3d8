package fs

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// mergePatience is how long a merge goes on if no program asks how far it is. The command that has begun it does so all the time.
const mergePatience = time.Minute

// A merger merges images of the chain, once at a time.
type merger struct {
	disk  Control
	check func(mounts.MergeRequest) error // as Options.CheckMerge
	job[vhdx.MergeResult]
}

// set begins or stops a merge, as data says. It returns EBUSY if one is to begin while one is running.
func (m *merger) set(data []byte) fuse.Status {
	r, ok := mergeRequest(data)
	if !ok {
		return fuse.EINVAL
	}
	if r.Stop {
		m.stop(r.ID)
		return fuse.OK
	}
	o := vhdx.MergeOptions{Into: r.Into, Delete: r.Delete, KeepName: r.KeepName, DryRun: r.DryRun, Rate: r.Rate,
		Reflink: imagefile.Reflink(r.Reflink), Phase: m.phase, Progress: m.progress, Shared: m.shared}
	if m.check != nil && !r.DryRun {
		o.Check = func() error {
			if err := m.check(r); err != nil {
				return refusedMerge{err}
			}
			return nil
		}
	}
	return m.begin(r.ID, func(ctx context.Context) (*vhdx.MergeResult, error) { return m.disk.Merge(ctx, r.Child, o) })
}

// A refusedMerge is an error for what was asked, not of the disk.
type refusedMerge struct{ error }

func (refusedMerge) Is(target error) bool { return target == vhdx.ErrOptions }

// mergeRequest decodes a request. A merge changes files, so what is not said in full, or not known here, begins none.
func mergeRequest(data []byte) (r mounts.MergeRequest, ok bool) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if d.Decode(&r) != nil || int(d.InputOffset()) != len(data) {
		return r, false
	}
	switch imagefile.Reflink(r.Reflink) {
	case "", imagefile.ReflinkAuto, imagefile.ReflinkAlways, imagefile.ReflinkNever:
	default:
		return r, false
	}
	return r, r.ID != "" && (r.Stop || r.Child != "") && r.Rate >= 0
}

func (m *merger) xattrs() map[string]string { return m.xattr(mounts.MergeXAttr) }
