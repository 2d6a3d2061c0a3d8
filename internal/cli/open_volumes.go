package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/filesystem"
	"github.com/vhdxfs/vhdxfs/internal/loop"
)

// An openVolume is a partition, or the only file system of a disk, and where it is mounted.
type openVolume struct {
	Partition  int    `json:"partition,omitempty"` // 0 is the whole disk, without a partition table
	Device     string `json:"device"`
	Size       int64  `json:"size"` // bytes
	FileSystem string `json:"filesystem,omitempty"`
	Label      string `json:"label,omitempty"`
	MountPoint string `json:"mount_point,omitempty"`
	Mode       string `json:"mode,omitempty"` // rw or ro, of what is mounted
	Note       string `json:"note,omitempty"` // why it is not mounted, or what to know of it

	mountable bool
	places    []string // where it is mounted already
	others    []string // its other uses
}

// volumesOf returns what is on the devices of a mount, as the partition table and the file systems tell.
func volumesOf(ctx context.Context, m *active.Mount) (list []*openVolume) {
	for _, d := range m.Devices {
		setContents(&d, deviceContents(d))
		if len(d.Partitions) == 0 {
			list = append(list, newVolume(ctx, 0, d.Path, d.Size, d.Content, d.Uses))
		}
		for _, p := range d.Partitions {
			list = append(list, newVolume(ctx, p.Number, p.Path, p.Size, p.Content, p.Uses))
		}
	}
	return list
}

func newVolume(ctx context.Context, number int, device string, size int64, c loop.Content, uses []string) *openVolume {
	v := &openVolume{Partition: number, Device: device, Size: size, FileSystem: c.FileSystem, Label: c.Label}
	v.places, v.others = placesOf(uses)
	if v.FileSystem == "" {
		v.askBlkid(ctx)
	}
	v.mountable = v.mountable || filesystem.CanMount(v.FileSystem)
	if !v.mountable {
		v.Note = v.advice()
	}
	return v
}

// placesOf takes from the uses of a device those that are mounts of its own file system: what lies on top of it, such as
// an encrypted volume, is not.
func placesOf(uses []string) (places, others []string) {
	for _, use := range uses {
		if place, ok := strings.CutPrefix(use, "mounted at "); ok && len(others) == 0 {
			places = append(places, place)
		} else {
			others = append(others, use)
		}
	}
	return places, others
}

// askBlkid asks blkid(8), which knows more kinds than package partition, if it is installed.
func (v *openVolume) askBlkid(ctx context.Context) {
	out, err := runTool(ctx, "blkid", "-p", "-o", "export", "--", v.Device)
	if err != nil {
		return
	}
	for line := range strings.Lines(out) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), "="); name {
		case "TYPE":
			v.FileSystem = value
		case "LABEL":
			v.Label = value
		case "USAGE":
			v.mountable = value == "filesystem"
		}
	}
}

// advice says what to do with what cannot be mounted.
func (v *openVolume) advice() string {
	switch v.FileSystem {
	case "BitLocker":
		return "encrypted; after vhdxfs attach, unlock it with: cryptsetup open --type bitlk DEVICE NAME"
	case "LUKS":
		return "encrypted; after vhdxfs attach, unlock it with: cryptsetup open DEVICE NAME"
	case "LVM":
		return "holds volumes of LVM; after vhdxfs attach, activate them with: vgchange -ay"
	case "RAID":
		return "part of a RAID; after vhdxfs attach, assemble it with: mdadm --assemble --scan"
	case "swap":
		return "swap space, not a file system"
	case "":
		return "no known file system"
	}
	return "Linux cannot mount it"
}

// name names the volume in messages.
func (v *openVolume) name() string {
	if v.Partition == 0 {
		return "the disk"
	}
	return fmt.Sprintf("partition %d", v.Partition)
}

// describe names the volume with what is on it.
func (v *openVolume) describe() string {
	text := v.name()
	if v.FileSystem != "" {
		text += " (" + v.FileSystem
		if v.Label != "" {
			text += fmt.Sprintf(" %q", v.Label)
		}
		text += ")"
	}
	return text
}

// choose returns the volumes that are to be mounted: the one that is named by its number, its label or its type, or all
// that can be mounted.
func choose(image, name string, list []*openVolume) ([]*openVolume, error) {
	if name != "" {
		v, err := volumeNamed(name, list)
		if err == nil && !v.mountable {
			err = fmt.Errorf("%s cannot be mounted: %s", v.describe(), v.Note)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", image, err)
		}
		return []*openVolume{v}, nil
	}
	chosen := slices.DeleteFunc(slices.Clone(list), func(v *openVolume) bool { return !v.mountable })
	if len(chosen) > 0 {
		return chosen, nil
	}
	var notes []string
	for _, v := range list {
		notes = append(notes, fmt.Sprintf("%s: %s", v.describe(), v.Note))
	}
	return nil, fmt.Errorf("%s: no file system that can be mounted; %s", image, strings.Join(notes, "; "))
}

// volumeNamed returns the volume that --partition names.
func volumeNamed(name string, list []*openVolume) (*openVolume, error) {
	number, err := strconv.Atoi(name)
	byNumber := err == nil && slices.ContainsFunc(list, func(v *openVolume) bool { return v.Partition == number })
	for _, is := range []func(*openVolume) bool{
		func(v *openVolume) bool { return byNumber && v.Partition == number },
		func(v *openVolume) bool { return v.Label == name },
		func(v *openVolume) bool { return strings.EqualFold(v.FileSystem, name) },
	} {
		var found []*openVolume
		var names []string
		for _, v := range list {
			if is(v) {
				found = append(found, v)
				names = append(names, v.describe())
			}
		}
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			return nil, usageError("--partition %q means %s; name one by its number", name, strings.Join(names, " and "))
		}
	}
	var names []string
	for _, v := range list {
		names = append(names, v.describe())
	}
	if len(names) == 0 {
		return nil, errors.New("the disk is empty")
	}
	return nil, usageError("no partition %q; there is %s", name, strings.Join(names, ", "))
}

// dirNames returns a name for each of the volumes: its label, or p and its number where the label is none for a directory,
// or that of another one.
func dirNames(list []*openVolume) []string {
	seen := map[string]int{}
	for _, v := range list {
		seen[strings.ToLower(v.Label)]++
	}
	names := make([]string, len(list))
	for i, v := range list {
		names[i] = v.Label
		if !goodName(v.Label) || seen[strings.ToLower(v.Label)] > 1 {
			names[i] = fmt.Sprintf("p%d", v.Partition)
		}
	}
	return names
}

// maxDirName is how long the name of a directory may be, in bytes.
const maxDirName = 255

// goodName reports whether a label can be the name of a directory, and is none that is given to a volume without.
func goodName(label string) bool {
	isNumber := len(label) > 1 && label[0] == 'p' && strings.Trim(label[1:], "0123456789") == ""
	return label != "" && label[0] != '.' && !isNumber && len(label) <= maxDirName && !strings.ContainsRune(label, '/') && printable(label) == label
}
