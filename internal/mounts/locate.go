package mounts

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a path may lead through, as for the kernel.
const maxLinks = 40

// A Location is where a path leads to.
type Location struct {
	Path  string          // absolute and without symbolic links; where Rest is not "", as far as the mount of the program
	Mount *mountinfo.Info // what is mounted at Path, on top; nil where Path is no mount point
	Rest  string          // of the path, inside a mount of the program
}

// Locate follows a path by the mount table. It stops at a mount of the program, and does not touch what is mounted there:
// its server may hang, and a step into a mount would keep it from being unmounted at that moment.
func Locate(path string) (*Location, error) {
	abs := path
	if !filepath.IsAbs(path) { // filepath.Abs would take ".." behind a symbolic link for the directory of the link
		dir, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		abs = dir + "/" + path
	}
	table, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	w := &walk{table: table, todo: elements(abs)}
	w.toRoot()
	for links := 0; len(w.todo) > 0; {
		link, err := w.step()
		switch {
		case err != nil:
			return nil, err
		case w.at().mounted != nil && w.at().mounted.FSType == Type:
			return &Location{w.at().path, w.at().mounted, filepath.Join(w.todo...)}, nil
		case link == "":
			continue
		}
		if links++; links > maxLinks {
			return nil, &os.PathError{Op: "readlink", Path: path, Err: unix.ELOOP}
		}
		if filepath.IsAbs(link) {
			w.toRoot()
		}
		w.todo = append(elements(link), w.todo...)
	}
	return &Location{Path: w.at().path, Mount: w.at().mounted}, nil
}

// Resolve returns path as the mount table has it: absolute and without symbolic links. It does not touch what is mounted
// there, which may be the mount of a program that hangs, or wait for an automounter.
func Resolve(path string) (string, error) {
	l, err := Locate(path)
	if err != nil {
		return "", err
	}
	return filepath.Join(l.Path, l.Rest), nil
}

// A walk goes along a path, one element after the other.
type walk struct {
	table []*mountinfo.Info
	done  []step
	todo  []string
}

// A step is a directory on the way.
type step struct {
	path    string
	on      int             // number of the mount that it is on
	mounted *mountinfo.Info // what is mounted there, on top
}

func (w *walk) at() step { return w.done[len(w.done)-1] }

// toRoot begins anew at the root directory.
func (w *walk) toRoot() {
	numbers := make(map[int]bool, len(w.table))
	for _, m := range w.table {
		numbers[m.ID] = true
	}
	root := step{path: "/"}
	for _, m := range w.table {
		if numbers[m.Parent] {
			continue
		}
		if m.Mountpoint == "/" {
			root.on = m.ID
			break
		}
		root.on = m.Parent // in a chroot that is no mount point, the table has no line for the root
	}
	root.on, _ = w.top("/", root.on)
	w.done = []step{root}
}

// top returns the number of what is on top at a path on the mount with the number on, and the mount, if one is there.
func (w *walk) top(path string, on int) (int, *mountinfo.Info) {
	var top *mountinfo.Info
	for again := true; again; {
		again = false
		for _, m := range w.table {
			if m.Mountpoint == path && m.Parent == on && m.ID != on {
				on, top, again = m.ID, m, true
				break
			}
		}
	}
	return on, top
}

// step goes to the next element. Where that is a symbolic link, it stays where it is and returns what the link says.
func (w *walk) step() (link string, err error) {
	name := w.todo[0]
	w.todo = w.todo[1:]
	switch name {
	case "", ".":
		return "", nil
	case "..":
		w.done = w.done[:max(1, len(w.done)-1)]
		return "", nil
	}
	next := step{path: filepath.Join(w.at().path, name)}
	if next.on, next.mounted = w.top(next.path, w.at().on); next.mounted == nil { // a mount point is no symbolic link
		st, err := os.Lstat(next.path)
		if err != nil {
			return "", err
		}
		if st.Mode()&os.ModeSymlink != 0 {
			return os.Readlink(next.path)
		}
	}
	w.done = append(w.done, next)
	return "", nil
}

func elements(path string) []string { return strings.Split(path, "/") }
