package active

import (
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// ServedBy returns the mount that one of the processes serves, without its devices, and nil where there is none.
func ServedBy(pids []int) *Mount {
	if len(pids) == 0 {
		return nil
	}
	table, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != mounts.Type || m.Root != "/" || !mounts.Trusted(m), false
	})
	if err != nil {
		return nil
	}
	pid := 0
	i := slices.IndexFunc(table, func(m *mountinfo.Info) bool {
		pid = mounts.ListenerPID(m)
		return slices.Contains(pids, pid)
	})
	if i < 0 {
		return nil
	}
	m, err := describe(table[i], loopTable{})
	if err != nil {
		return nil
	}
	if m.PID == 0 {
		m.PID = pid
	}
	return m
}

// Writers names the servers of this host's mounts that have a file open for writing, with locks or without. It asks a
// mount only where the kernel does not tell what its server has open: that may hang.
func Writers(file imagefile.FileID) (names string, pids []int) {
	var found []string
	hidden := make(map[int]bool) // by process
	servers := make(map[string]mounts.Server)
	for _, s := range mounts.Servers() {
		servers[s.Device] = s
		if _, seen := hidden[s.PID]; seen || s.PID == file.PID {
			continue
		}
		writes, err := imagefile.WrittenBy(s.PID, file)
		if hidden[s.PID] = err != nil; writes {
			found, pids = append(found, imagefile.ProcessName(s.PID)), append(pids, s.PID)
		}
	}
	table, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != mounts.Type || m.Root != "/" || mounts.ReadOnly(m) || !mounts.Trusted(m), false
	})
	if err != nil {
		return strings.Join(found, ", "), pids
	}
	for _, m := range table {
		if s := servers[mounts.DeviceOf(m)]; s.Serves(m) && !hidden[s.PID] {
			continue
		}
		d, err := describe(m, loopTable{})
		if err != nil || d.State != Serving || d.PID == file.PID || d.Overlay != "" || d.ImageID != mounts.NameOf(file) {
			continue
		}
		found, pids = append(found, "the mount on "+d.MountPoint), append(pids, d.PID)
	}
	return strings.Join(found, ", "), pids
}
