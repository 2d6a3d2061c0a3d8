package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// A mountedChain is the chain of a mount that is to be merged while it is in use.
type mountedChain struct {
	*active.Mount
	paths []string // of its images, as the mount names them, the image itself first
	child int      // which of them is to be merged
}

// mountedChainOf returns the chain of the read/write mount that path names, or in which the image at path is a parent. It is nil if
// there is none.
func mountedChainOf(path string) (*mountedChain, error) {
	m, notMounted := active.Find(path)
	switch {
	case notMounted == nil && (m.Mode == "rw" || m.State != active.Serving || !sameFile(path, m.Image)):
		paths, err := chainOfMount(m)
		if err != nil {
			return nil, err
		}
		return &mountedChain{m, paths, 0}, nil
	case notMounted == nil:
		return nil, nil // which the locks tell
	case !errors.Is(notMounted, active.ErrNotMounted), isDir(path):
		return nil, usageError("%w", notMounted)
	}
	list, err := active.List()
	if err != nil {
		return nil, err
	}
	for _, m := range list {
		if m.State != active.Serving || m.Mode != "rw" || m.Overlay != "" {
			continue
		}
		paths, err := chainOfMount(m)
		if err != nil {
			continue // it has just ended
		}
		if i := slices.IndexFunc(paths, func(p string) bool { return sameFile(p, path) }); i > 0 {
			return &mountedChain{m, paths, i}, nil
		}
	}
	return nil, nil
}

// chainOfMount returns the paths of the images of a mount, as it names them, the image itself first.
func chainOfMount(m *active.Mount) ([]string, error) {
	values, err := mounts.Attributes(m.MountPoint, "path", "parent_chain")
	if err != nil {
		return nil, refusal(m, "merge", err)
	}
	paths := []string{values["path"]}
	for p := range strings.SplitSeq(values["parent_chain"], "\n") {
		if p != "" {
			paths = append(paths, p)
		}
	}
	return paths, nil
}

// taking returns the paths of the images that a merge changes.
func (k *mountedChain) taking(into string) ([]string, error) {
	last := k.child + 1
	if into != "" {
		last = slices.IndexFunc(k.paths, func(p string) bool { return sameFile(p, into) })
	}
	switch {
	case k.child+1 >= len(k.paths):
		return nil, usageError("%s has no parent to merge into", k.paths[k.child])
	case last <= k.child:
		return nil, usageError("%s is not a parent of %s", into, k.paths[k.child])
	}
	return k.paths[k.child : last+1], nil
}

// checkMerge looks again, in the program that serves a mount, whether a merge loses other children: one may have come until the
// images were locked.
func checkMerge(info *vhdx.Info, r mounts.MergeRequest, o vhdx.Options) error {
	k := mountedChain{paths: []string{info.Path}}
	for p := info.Parent; p != nil && p.Image != nil; p = p.Image.Parent {
		k.paths = append(k.paths, p.Image.Path)
	}
	k.child = max(0, slices.Index(k.paths, r.Child))
	taking, err := k.taking(r.Into)
	if err != nil {
		return err
	}
	c := mergeCommand{merge: vhdx.MergeOptions{Open: o, Delete: r.Delete, KeepName: r.KeepName}, force: r.Force}
	return c.checkChildren(taking, k.paths)
}

// online has the program that serves a mount merge images, shows how far it is, and waits for the end. Where ctx ends before, the
// merge is stopped.
func (c *mergeCommand) online(ctx context.Context, k *mountedChain, p *progress) (*vhdx.MergeResult, error) {
	if len(c.options) > 0 {
		return nil, usageError("%s is mounted on %s; its options are used, so omit -o", k.Image, k.MountPoint)
	}
	taking, err := k.taking(c.merge.Into)
	if err != nil {
		return nil, err
	}
	if err := c.checkChildren(taking, k.paths); err != nil {
		return nil, err
	}
	request := mounts.MergeRequest{
		ID: rand.Text(), Child: taking[0], Into: taking[len(taking)-1],
		Delete: c.merge.Delete, KeepName: c.merge.KeepName, DryRun: c.merge.DryRun, Rate: c.merge.Rate, Reflink: string(c.merge.Reflink),
		Force: c.force,
	}
	if err := mounts.TellMerge(k.MountPoint, request); err != nil {
		return nil, refusal(k.Mount, "merge", err)
	}
	now, err := awaitJob(ctx, p, 5*time.Millisecond, func() (*mounts.Merge, error) {
		now, err := mounts.AskMerge(k.MountPoint)
		switch {
		case err != nil: // it took the request, so it is no other program's
			return nil, fmt.Errorf("the mount at %s ended before the merge was done; the disk is the same, mount it and run merge again (%w)", k.MountPoint, err)
		case now.ID != request.ID:
			return nil, fmt.Errorf("another merge of %s followed before this one was confirmed; check with vhdxfs chain", k.MountPoint)
		}
		return now, nil
	}, func() error {
		if err := mounts.TellMerge(k.MountPoint, mounts.MergeRequest{ID: request.ID, Stop: true}); err != nil {
			return refusal(k.Mount, "merge", err)
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case now.Refused:
		return nil, &statusError{statusUsage, errors.New(now.Error)}
	case now.Error != "":
		return nil, errors.New(now.Error)
	}
	return now.Result, nil
}
