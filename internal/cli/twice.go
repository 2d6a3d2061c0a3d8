package cli

import (
	"os"
	"path/filepath"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// What is done twice, as configuration management does, is done already.

// alreadyMounted returns the mount of the same image at the same mount point, made as the options want it, and nil where
// there is none.
func alreadyMounted(o *mountoption.Options, image, mountPoint string) *active.Mount {
	at, err := mounts.Locate(mountPoint)
	if err != nil || at.Mount == nil || at.Rest != "" || at.Mount.FSType != mounts.Type || !mounts.Trusted(at.Mount) {
		return nil
	}
	m, err := active.Describe(at.Mount)
	if err != nil || !isMountOf(o, m, image) {
		return nil
	}
	return m
}

// alreadyAttached returns the mount of the image that is attached to a loop device, made as the options want it and at the
// mount point, if one is given, and nil where there is none.
func alreadyAttached(o *mountoption.Options, image, mountPoint string) *active.Mount {
	m, err := active.Find(image)
	if err != nil || len(m.Devices) == 0 || !isMountOf(o, m, image) {
		return nil
	}
	if mountPoint == "" {
		return m
	}
	if at, err := mounts.Locate(mountPoint); err != nil || filepath.Join(at.Path, at.Rest) != m.MountPoint {
		return nil
	}
	return m
}

// isMountOf reports whether m is a mount of the image, made as the options want it.
func isMountOf(o *mountoption.Options, m *active.Mount, image string) bool {
	mode := "rw"
	if o.ReadOnly {
		mode = "ro"
	}
	st, err := os.Stat(image)
	return err == nil && m.State == active.Serving && m.ImageID == mounts.FileID(st) && m.Mode == mode &&
		m.Overlay == o.Mount.Overlay && m.Overlay != mountoption.OverlayTmp && m.Partition == o.Partition
}
