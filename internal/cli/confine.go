package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/monitor"
	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/sandbox"
	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// ownFiles are read about the process itself: its mounts, and what the metrics tell of it.
const ownFiles = "/proc/self"

// confine gives up what the process does not need to serve the image. Nothing of that was read yet.
func (j *mountJob) confine(k monitor.Keeper) error {
	j.Mount.Sandbox = mountoption.SandboxOff
	if j.Sandbox == mountoption.SandboxOff || !j.ownProcess {
		return nil
	}
	imagefile.LockHolders, imagefile.Writers, servedBy = k.LockHolders, k.Writers, k.MountServedBy
	_ = time.Now().String() // which reads the time zone, if nothing has yet
	keepOwnFiles()
	rules := j.reach()
	rules.Socket = k.Socket()
	state := sandbox.Confine(rules)
	if j.Sandbox == mountoption.SandboxOn && !state.Complete() {
		return fmt.Errorf("the sandbox is %s; use sandbox=try to mount with what the kernel supports", state)
	}
	j.Mount.Sandbox = state.String()
	return nil
}

// keepOwnFiles keeps the directory of ownFiles open. A rule of Landlock holds for the directory as the kernel has it in memory:
// where it drops that, as it does when memory is short, it makes another one at the next access, for which there is no rule.
var keepOwnFiles = sync.OnceFunc(func() {
	_, _ = unix.Open(ownFiles, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) // stays open as long as the process
})

// confineOpened gives up what was needed to open the image for reading.
func (j *mountJob) confineOpened(log *logrus.Logger) {
	if !j.ReadOnly || j.Sandbox == mountoption.SandboxOff || !j.ownProcess {
		return
	}
	if err := sandbox.DropCapabilities(); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		log.WithError(err).Warn("the sandbox leaves the process some privileges")
	}
}

// reach returns what the process that serves the image must get at.
func (j *mountJob) reach() sandbox.Rules {
	r := sandbox.Rules{
		Read:         []string{ownFiles},
		Write:        []string{os.DevNull},
		Capabilities: sandbox.CapabilitySet(unix.CAP_DAC_READ_SEARCH),
	}
	image := imageReach(j.Mount.Image)
	switch {
	case j.ReadOnly:
		r.Read = append(r.Read, image...)
	case j.overlayDir != "":
		r.Read = append(r.Read, image...)
		r.Write = append(r.Write, j.overlayDir)
	case j.Mount.Overlay != "":
		r.Read = append(r.Read, image...)
		r.Write = append(r.Write, directories(j.Mount.Overlay)...)
	default:
		r.Write = append(r.Write, image...)
	}
	if !j.ReadOnly {
		// Files of others, in directories of others, and a new one that belongs to the owner of the old one.
		r.Capabilities |= sandbox.CapabilitySet(unix.CAP_DAC_OVERRIDE, unix.CAP_CHOWN, unix.CAP_FOWNER)
	}
	for _, parent := range j.Open.Parents {
		r.Read = append(r.Read, imageReach(parent)...)
	}
	r.Read = append(r.Read, j.Open.ParentDirs...)
	return r
}

// imageReach returns what has to be reached to open the image at path: the directory, in which its parents are, too. For
// a block device it is the device, and the directory only where that is not one of devices, such as /dev/mapper or /dev/disk/by-id.
func imageReach(path string) []string {
	st, err := os.Stat(path)
	if err != nil || st.Mode().Type() != fs.ModeDevice {
		return directories(path)
	}
	return append(slices.DeleteFunc(directories(path), holdsDevices), path)
}

// holdsDevices reports whether a directory is /dev, or below it.
func holdsDevices(dir string) bool { return isBelow("/dev", dir) }

// directories returns the directory of a file, and, where that is a symbolic link, also the one of the file that it leads to.
func directories(path string) []string {
	list := []string{filepath.Dir(path)}
	if real, err := filepath.EvalSymlinks(path); err == nil && filepath.Dir(real) != list[0] {
		list = append(list, filepath.Dir(real))
	}
	return list
}

// ownProcess is the key of a context whose value says that the process has nothing else to do than the command line, as
// it has in a test.
type ownProcess struct{}

// confineReader gives up what a command does not need that only reads images. Where one of them, or one beside it, is
// mounted for writing, nothing is given up: the command has to talk to the mount. In the directories it can make files.
func confineReader(ctx context.Context, paths []string, o vhdx.Options, directories ...string) {
	if own, _ := ctx.Value(ownProcess{}).(bool); !own || !freeToRead(paths, o) {
		return
	}
	texts := make(map[string]string, len(paths))
	r := sandbox.Rules{Read: []string{ownFiles}, Write: []string{os.DevNull}, Make: directories, Empty: parents(directories), Socket: -1}
	r.Capabilities = sandbox.CapabilitySet(unix.CAP_DAC_READ_SEARCH) | makerCapabilities(directories)
	for _, path := range paths {
		texts[path] = mountedText(path)
		r.Read = append(r.Read, imageReach(path)...)
	}
	for _, parent := range o.Parents {
		r.Read = append(r.Read, imageReach(parent)...)
	}
	r.Read = append(r.Read, o.ParentDirs...)
	tellMounted = func(path string) string { return texts[path] }
	_ = time.Now().String() // which reads the time zone, if nothing has yet
	keepOwnFiles()
	_ = sandbox.Confine(r) // as far as the kernel can: what is missing keeps nothing from being read
}

// parents returns the directories that hold the paths.
func parents(paths []string) (list []string) {
	for _, p := range paths {
		list = append(list, filepath.Dir(p))
	}
	return list
}

// freeToRead reports whether no other program keeps the images from being read, nor may keep their parents.
func freeToRead(paths []string, o vhdx.Options) bool {
	table, err := mountinfo.GetMounts(mountinfo.FSTypeFilter(mounts.Type))
	if err != nil {
		return false
	}
	var near []string
	for _, path := range slices.Concat(paths, o.Parents) {
		near = append(near, directories(path)...)
	}
	near = append(near, o.ParentDirs...)
	for _, m := range table {
		if !mounts.ReadOnly(m) && slices.ContainsFunc(near, func(dir string) bool { return isBelow(dir, m.Source) }) {
			return false
		}
	}
	for _, path := range paths {
		f, err := imagefile.Open(path, os.O_RDONLY)
		if err != nil {
			return false // which the command will tell
		}
		err = f.Lock(vhdx.LockOn, imagefile.Shared)
		if cerr := f.Close(); err != nil || cerr != nil {
			return false
		}
	}
	return true
}
