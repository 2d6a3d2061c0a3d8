package mounts

import (
	"path/filepath"
	"testing"

	"github.com/moby/sys/mountinfo"
)

// The table of a chroot has no line for the root if that is no mount point. A mount must be found all the same: a look at
// what is mounted there would wait for its server, which may itself be the one that waits for this answer.
func TestLocateByTheTable(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	point := filepath.Join(dir, "not there") // so that a look at it fails
	disk := &mountinfo.Info{ID: 42, Parent: 20, Mountpoint: point, FSType: Type}
	for name, table := range map[string][]*mountinfo.Info{
		"the root is a mount point":            {{ID: 20, Parent: 1, Mountpoint: "/"}, {ID: 21, Parent: 20, Mountpoint: "/proc"}, disk},
		"the root is a directory in a mount":   {{ID: 21, Parent: 20, Mountpoint: "/proc"}, disk},
		"the table begins with another parent": {{ID: 30, Parent: 7, Mountpoint: "/elsewhere"}, {ID: 20, Parent: 1, Mountpoint: "/"}, disk},
	} {
		t.Run(name, func(t *testing.T) {
			w := &walk{table: table, todo: elements(point)}
			w.toRoot()
			for len(w.todo) > 0 {
				if _, err := w.step(); err != nil {
					t.Fatal(err)
				}
			}
			if w.at().mounted != disk {
				t.Errorf("found %+v", w.at())
			}
		})
	}
}
