package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// online has the program that serves a mount make the snapshot, and waits for the end. It takes a moment, and is not
// interrupted; ctx ends the waiting.
func (c *snapshotCommand) online(ctx context.Context, m *active.Mount, name string) (*vhdx.SnapshotResult, error) {
	if m.Overlay == mountoption.OverlayTmp {
		return nil, usageError("%s is mounted with overlay=%s; its overlay has no file to freeze", m.Image, mountoption.OverlayTmp)
	}
	if len(c.options) > 0 {
		return nil, usageError("%s is mounted on %s; its options are used, so omit -o", m.Image, m.MountPoint)
	}
	m, err := c.withoutChildren(m)
	if err != nil {
		return nil, err
	}
	name, err = nameBeside(m.Image, name)
	if err != nil {
		return nil, err
	}
	request := mounts.SnapshotRequest{ID: rand.Text(), Name: name, KeepName: c.o.KeepName, ParentPaths: c.o.ParentPaths}
	if err := mounts.TellSnapshot(m.MountPoint, request); err != nil {
		return nil, refusal(m, "snapshot", err)
	}
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		select {
		case <-ctx.Done():
			return nil, interrupted(context.Cause(ctx), "the snapshot may still be created; check with vhdxfs chain")
		case <-time.After(wait):
		}
		now, err := mounts.AskSnapshot(m.MountPoint, request.ID)
		switch {
		case err != nil: // it took the request, so it is no other program's
			return nil, fmt.Errorf("the mount at %s has ended, or hangs, before it confirmed the snapshot; check with vhdxfs chain (%w)", m.MountPoint, err)
		case now.ID != request.ID:
			return nil, fmt.Errorf("other snapshots of %s followed before this one was confirmed; check with vhdxfs chain", m.Image)
		case now.Running:
			continue
		case now.Refused:
			return nil, &statusError{statusUsage, errors.New(now.Error)}
		case now.Error != "":
			return nil, errors.New(now.Error)
		case now.Result == nil: // the mount went, and what is below it has answered
			return nil, fmt.Errorf("%s was unmounted meanwhile; check with vhdxfs chain", m.MountPoint)
		}
		return now.Result, nil
	}
}

// withoutChildren is checkChildren for the image that is mounted. Another snapshot of the mount may follow at any moment,
// after which that image is another one; while it is being made, its child is there and no reason. It returns the mount as it
// is then.
func (c *snapshotCommand) withoutChildren(m *active.Mount) (*active.Mount, error) {
	for {
		err := c.checkChildren(m.Image, "", vhdx.Options{})
		if err == nil {
			return m, nil
		}
		other, _ := mounts.AskSnapshot(m.MountPoint, "") // in this order: one that has ended by now has changed the image
		now, lost := mountedNow(m.MountPoint)
		if lost != nil || now.Image == m.Image && now.ImageID == m.ImageID {
			if other != nil && other.Running {
				err = refusal(m, "snapshot", unix.EBUSY)
			}
			return nil, err
		}
		m = now
	}
}

// nameBeside returns the name of a new file without its directory, which has to be that of the image.
func nameBeside(image, name string) (string, error) {
	if !strings.Contains(name, "/") {
		return name, nil
	}
	if real, err := filepath.EvalSymlinks(image); err == nil {
		image = real // beside which it is going to be
	}
	if !sameFile(filepath.Dir(name), filepath.Dir(image)) {
		return "", usageError("the image is mounted; the new file must be in its directory, %s", filepath.Dir(image))
	}
	return filepath.Base(name), nil
}
