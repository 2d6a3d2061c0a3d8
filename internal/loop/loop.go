package loop

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// sysBlock is where the kernel tells of block devices.
const sysBlock = "/sys/block"

// sysUnit is the unit of sizes in sysfs, in bytes, for all sector sizes of a device.
const sysUnit = 512

// A Device is a loop device that is attached to a file.
type Device struct {
	Path       string `json:"device"`       // such as /dev/loop0
	File       string `json:"backing_file"` // its path when the device was attached, as this process sees it
	Size       int64  `json:"size"`         // bytes
	SectorSize int64  `json:"sector_size"`  // logical, bytes
	ReadOnly   bool   `json:"read_only"`
	Content
	Uses       []string    `json:"uses"` // of the device as a whole, such as "mounted at /mnt"
	Partitions []Partition `json:"partitions"`
}

// A Partition is a part of a device.
type Partition struct {
	Path   string `json:"device"` // such as /dev/loop0p1
	Number int    `json:"number"`
	Start  int64  `json:"start"` // on the disk, bytes
	Size   int64  `json:"size"`  // bytes
	Content
	Uses []string `json:"uses"`
}

// Content is what a device or partition holds, as far as a caller has looked: this package does not.
type Content struct {
	FileSystem string `json:"filesystem,omitempty"`
	Label      string `json:"label,omitempty"`
}

// On returns the devices that are attached to the file at path, which is absolute and without symbolic links.
func On(path string) ([]Device, error) {
	return list(func(d *Device) bool { return d.File == path })
}

// Named returns the devices that are attached to a file with a name, wherever that is.
func Named(name string) ([]Device, error) {
	return list(func(d *Device) bool { return filepath.Base(d.File) == name })
}

// maxBelow is how many devices may lie below each other.
const maxBelow = 16

// Below returns the loop devices on which a block device lies: itself, that of which it is a partition, or those below a
// volume.
func Below(major, minor uint32) []string {
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
	if err != nil {
		return nil
	}
	return below(dir, maxBelow)
}

func below(dir string, depth int) (paths []string) {
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	if _, err := os.Stat(filepath.Join(dir, "loop", "backing_file")); err == nil {
		return []string{"/dev/" + filepath.Base(dir)}
	}
	slaves, _ := filepath.Glob(filepath.Join(dir, "slaves", "*")) // the pattern is a good one
	for _, s := range slaves {
		if s, err := filepath.EvalSymlinks(s); err == nil && depth > 0 {
			paths = append(paths, below(s, depth-1)...)
		}
	}
	return paths
}

// At returns the device at path, such as /dev/loop0, and nil where that is no loop device in use.
func At(path string) (*Device, error) {
	devices, err := list(func(d *Device) bool { return d.Path == path })
	if err != nil || len(devices) == 0 {
		return nil, err
	}
	return &devices[0], nil
}

// Going reports whether nothing uses the device, and the kernel detaches it when the last program closes it, as after a
// request to detach it while it was open. A program that opens it in passing would keep it.
func (d *Device) Going() bool {
	unused := len(d.Uses) == 0
	for _, p := range d.Partitions {
		unused = unused && len(p.Uses) == 0
	}
	return unused && number(filepath.Join(sysBlock, filepath.Base(d.Path)), "loop", "autoclear") != 0
}

// list returns the devices that are wanted by their paths and files.
func list(want func(*Device) bool) ([]Device, error) {
	dirs, err := filepath.Glob(filepath.Join(sysBlock, "loop*"))
	if err != nil {
		return nil, err
	}
	var devices []Device
	var table *users
	for _, dir := range dirs {
		file, err := os.ReadFile(filepath.Join(dir, "loop", "backing_file"))
		if err != nil {
			continue // not attached, or not any more
		}
		d := Device{Path: "/dev/" + filepath.Base(dir), File: strings.TrimSuffix(string(file), "\n")}
		if !want(&d) {
			continue
		}
		if table == nil {
			if table, err = readUsers(); err != nil {
				return nil, err
			}
		}
		d.Size = number(dir, "size") * sysUnit
		d.SectorSize = number(dir, "queue", "logical_block_size")
		d.ReadOnly = number(dir, "ro") != 0
		d.Uses = table.of(dir)
		d.Partitions = partitions(dir, table)
		devices = append(devices, d)
	}
	return devices, nil
}

// partitions returns those that the kernel knows of the device with the given directory, in the order of their numbers.
func partitions(dir string, table *users) []Partition {
	list := []Partition{}
	dirs, _ := filepath.Glob(filepath.Join(dir, filepath.Base(dir)+"p*")) // the pattern is a good one
	for _, d := range dirs {
		p := Partition{
			Path:   "/dev/" + filepath.Base(d),
			Number: int(number(d, "partition")),
			Start:  number(d, "start") * sysUnit,
			Size:   number(d, "size") * sysUnit,
			Uses:   table.of(d),
		}
		if p.Number > 0 {
			list = append(list, p)
		}
	}
	sortByNumber(list)
	return list
}

// number reads a number from sysfs, and 0 where there is none.
func number(elements ...string) int64 {
	b, err := os.ReadFile(filepath.Join(elements...))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
