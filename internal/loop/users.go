package loop

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// maxHolders is how many devices may lie on top of each other, as a volume on an encrypted partition does.
const maxHolders = 8

// users is what the system says of the use of block devices.
type users struct {
	mounts []*mountinfo.Info
	swaps  map[string]bool // by path
}

func readUsers() (*users, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	u := &users{mounts: mounts, swaps: make(map[string]bool)}
	f, err := os.Open("/proc/swaps")
	if err != nil {
		return u, nil // a kernel without
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, _, ok := strings.Cut(lines.Text(), " "); ok {
			u.swaps[name] = true
		}
	}
	return u, nil
}

// of returns the uses of the block device with the given directory in sysfs: mounts, swap, and the devices on top of it
// with their uses. It is never nil.
func (u *users) of(dir string) []string { return u.ofHolders(dir, maxHolders) }

func (u *users) ofHolders(dir string, depth int) []string {
	uses := []string{}
	path := devicePath(dir)
	var number string
	if b, err := os.ReadFile(filepath.Join(dir, "dev")); err == nil {
		number = strings.TrimSpace(string(b))
	}
	for _, m := range u.mounts {
		// btrfs and the like give the mount a number of their own.
		if m.Source == path || strconv.Itoa(m.Major)+":"+strconv.Itoa(m.Minor) == number {
			uses = append(uses, "mounted at "+m.Mountpoint)
		}
	}
	if u.swaps[path] {
		uses = append(uses, "used as swap")
	}
	holders, _ := filepath.Glob(filepath.Join(dir, "holders", "*")) // the pattern is a good one
	for _, h := range holders {
		uses = append(uses, "part of "+devicePath(h))
		if depth > 0 {
			uses = append(uses, u.ofHolders(h, depth-1)...)
		}
	}
	return uses
}

// devicePath returns the name under which a device is known to its users, given its directory in sysfs.
func devicePath(dir string) string {
	if b, err := os.ReadFile(filepath.Join(dir, "dm", "name")); err == nil {
		return "/dev/mapper/" + strings.TrimSpace(string(b))
	}
	return "/dev/" + filepath.Base(dir)
}
