package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/processes"
	"github.com/vhdxfs/vhdxfs/internal/terminal"
)

// maxUsers bounds how many processes are named.
const maxUsers = 5

// mountUsers names what keeps the mount at dir from being unmounted: loop devices, mounts below it, and processes
// that have something of it open. What this user may not look at is left out.
//
// Nothing on the mount is touched, only what the kernel says of names: the program behind it may hang.
func mountUsers(dir string) []string {
	table, err := mountinfo.GetMounts(nil)
	if err != nil {
		table = nil
	}
	users := loopUsers(dir, table)
	for _, m := range table {
		if below(m.Mountpoint, dir) && m.Mountpoint != dir {
			users = append(users, fmt.Sprintf("the mount at %s (umount %s)", m.Mountpoint, terminal.Shell(m.Mountpoint)))
		}
	}
	return append(users, processUsers(dir, os.Getpid(), helped())...)
}

// helped returns the process of mount(8) or umount(8) that has called this one as its helper, and 0 if another program, such as a
// shell, has: that may be what keeps the mount in use.
func helped() int {
	pid := os.Getppid()
	switch name, _ := os.ReadFile(processes.Path(pid, "comm")); strings.TrimSpace(string(name)) {
	case "mount", "umount":
		return pid
	}
	return 0
}

// loopUsers names the loop devices on files below dir, and where they are mounted.
func loopUsers(dir string, table []*mountinfo.Info) []string {
	var users []string
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is a good one
	for _, f := range files {
		name, err := os.ReadFile(f)
		if err != nil || !below(strings.TrimSuffix(string(name), "\n"), dir) {
			continue
		}
		dev := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(f)))
		var todo []string
		for _, m := range table {
			if rest, ok := strings.CutPrefix(m.Source, dev); ok && (rest == "" || rest[0] == 'p') {
				todo = append(todo, "umount "+m.Mountpoint)
			}
		}
		todo = append(todo, "losetup -d "+dev)
		users = append(users, fmt.Sprintf("the loop device %s (%s)", dev, strings.Join(todo, "; ")))
	}
	return users
}

// processUsers names the processes that have the file or the directory at path, or something below it, open, mapped
// or as their place, but for those excepted.
func processUsers(path string, except ...int) []string {
	var users []string
	for pid := range processes.Find(func(pid int) (struct{}, bool) {
		return struct{}{}, !slices.Contains(except, pid) && processUses(pid, path)
	}) {
		if len(users) == maxUsers {
			return append(users, "others")
		}
		name, _ := os.ReadFile(processes.Path(pid, "comm"))
		users = append(users, fmt.Sprintf("%s (process %d)", strings.TrimSpace(string(name)), pid))
	}
	return users
}

func processUses(pid int, dir string) bool {
	links := processes.OpenFiles(pid)
	for _, name := range []string{"cwd", "root", "exe"} {
		links = append(links, processes.Path(pid, name))
	}
	if slices.ContainsFunc(links, func(l string) bool {
		to, err := os.Readlink(l)
		return err == nil && below(to, dir) && (to != dir || !isUnder(l, dir))
	}) {
		return true
	}
	maps, err := os.ReadFile(processes.Path(pid, "maps"))
	return err == nil && strings.Contains(string(maps), " "+dir+"/")
}

// isUnder reports whether a descriptor, given by its link in /proc, is of a directory that the mount at dir hides, as that is
// whose program has locked the name of its mount point. Where dir is none, such as a device, nothing is hidden.
func isUnder(link, dir string) bool {
	if m, err := mounts.At(dir); err != nil || m == nil {
		return false
	}
	process := filepath.Dir(filepath.Dir(link))
	info, err := os.ReadFile(filepath.Join(process, "fdinfo", filepath.Base(link)))
	if err != nil {
		return false
	}
	_, id, _ := strings.Cut(string(info), "mnt_id:")
	id, _, _ = strings.Cut(id, "\n")
	table, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return strconv.Itoa(m.ID) != strings.TrimSpace(id) || m.Mountpoint == dir, false
	})
	return err == nil && len(table) > 0
}

// below reports whether path is dir or below it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// mountedAt returns where the device, major:minor, is mounted in this namespace, and "" where it is not.
func mountedAt(device string) string {
	table, err := mountinfo.GetMounts(mounts.OnDevice(device))
	if err != nil || len(table) == 0 {
		return ""
	}
	return table[0].Mountpoint
}

// namespaceWith returns a process that has the device, major:minor, in its mount table, and "" where none is found.
func namespaceWith(device string) string {
	var seen sync.Map // mount namespaces
	for pid := range processes.Find(func(pid int) (struct{}, bool) {
		ns, err := os.Readlink(processes.Path(pid, "ns", "mnt"))
		if err != nil {
			return struct{}{}, false
		}
		if _, again := seen.LoadOrStore(ns, true); again {
			return struct{}{}, false
		}
		f, err := os.Open(processes.Path(pid, "mountinfo"))
		if err != nil {
			return struct{}{}, false
		}
		defer f.Close()
		table, err := mountinfo.GetMountsFromReader(f, mounts.OnDevice(device))
		return struct{}{}, err == nil && len(table) > 0
	}) {
		return strconv.Itoa(pid)
	}
	return ""
}
