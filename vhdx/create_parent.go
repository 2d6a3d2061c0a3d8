package vhdx

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// maxDiskItems bounds the metadata of a virtual disk that new images inherit, in bytes. Known images have some
// hundred at most.
const maxDiskItems = 4 * ondisk.MiB

// Like returns options for a new image of the same disk: its size, block and sector sizes, its id and the further
// metadata of the disk, such as the items of users. The type is the default.
func (im *Image) Like() (CreateOptions, error) {
	l := im.current()
	items, err := l.diskItems()
	if err != nil {
		return CreateOptions{}, fmt.Errorf("%s: %w", l.path, err)
	}
	return CreateOptions{
		Size:               l.geo.DiskSize,
		BlockSize:          l.geo.BlockSize,
		LogicalSectorSize:  l.geo.SectorSize,
		PhysicalSectorSize: int64(l.meta.physicalSectorSize),
		DiskID:             l.meta.diskID,
		items:              items,
	}, nil
}

// Inherit returns the options with what they leave open taken from others.
func (o CreateOptions) Inherit(from CreateOptions) CreateOptions {
	o.Size = cmp.Or(o.Size, from.Size)
	o.Type = cmp.Or(o.Type, from.Type)
	o.BlockSize = cmp.Or(o.BlockSize, from.BlockSize)
	o.LogicalSectorSize = cmp.Or(o.LogicalSectorSize, from.LogicalSectorSize)
	o.PhysicalSectorSize = cmp.Or(o.PhysicalSectorSize, from.PhysicalSectorSize)
	o.DiskID = cmp.Or(o.DiskID, from.DiskID)
	o.items = from.items
	return o
}

// diskItems reads the metadata items that belong to the virtual disk and not to the file (MS-VHDX 2.6.1.2), but for
// those whose meaning is known.
func (l *layer) diskItems() ([]diskItem, error) {
	var items []diskItem
	room := maxDiskItems
	for _, m := range l.items {
		if _, known := m.Known(); known || m.Flags&ondisk.ItemIsVirtualDisk == 0 {
			continue
		}
		if room -= int(m.Length); room < 0 {
			return nil, fmt.Errorf("the disk has more than %d MiB of metadata", maxDiskItems/ondisk.MiB)
		}
		it := diskItem{id: m.ID, flags: m.Flags, data: make([]byte, m.Length)}
		if err := readFull(l.src, it.data, l.metadataOffset()+int64(m.Offset), "metadata item"); err != nil {
			return nil, err
		}
		items = append(items, it)
	}
	return items, nil
}

// withParent completes the options for a child at path by what its parent determines. The parent and its locks are
// held until release is called.
func (o CreateOptions) withParent(path string) (_ CreateOptions, release func(), err error) {
	if o.Parent == "" {
		return o, func() {}, nil
	}
	o.Open.Writable = false
	im, err := Open(o.Parent, o.Open)
	if err != nil {
		return o, nil, fmt.Errorf("parent: %w", err)
	}
	release = func() { _ = im.Close() } // nothing was written
	if o, err = o.childOf(im, path); err != nil {
		release()
		return o, nil, optionsError{err}
	}
	return o, release, nil
}

// childOf completes the options for a child of im at path.
func (o CreateOptions) childOf(im *Image, path string) (CreateOptions, error) {
	like, err := im.Like()
	if err != nil {
		return o, err
	}
	like.Type = Differencing
	o = o.Inherit(like)
	switch {
	case o.LogicalSectorSize != like.LogicalSectorSize:
		return o, fmt.Errorf("invalid logical sector size %d: must be %d, as in the parent", o.LogicalSectorSize, like.LogicalSectorSize)
	case o.Size < like.Size:
		return o, fmt.Errorf("invalid disk size %s: must be at least %s, the size of the parent", sizes.Exact(o.Size), sizes.Exact(like.Size))
	case im.Holds(path):
		return o, fmt.Errorf("the file is the parent itself, or one of its parents")
	case im.layers() == maxLayers:
		return o, fmt.Errorf("the chain already has %d images, the maximum; merge some of them", maxLayers)
	}
	inputs, err := im.Access()
	if err != nil {
		return o, err
	}
	o.Inputs = append(inputs, o.Inputs...)
	o.locator, err = parentKeys(path, o.Parent, o.ParentPaths, im.current().dataWriteGUID())
	return o, err
}

// Access returns the owner, permissions and ACL of each file of the chain, the image's own first.
func (im *Image) Access() ([]safefile.Access, error) {
	var list []safefile.Access
	for l := im.current(); l != nil; l = l.parent() {
		a, err := AccessOf(l.file, l.path)
		if err != nil {
			return nil, err
		}
		list = append(list, a...)
	}
	return list, nil
}

// AccessOf returns the owner, permissions and ACL of the open file, and nothing for one that is in no file system.
func AccessOf(f File, path string) ([]safefile.Access, error) {
	d, ok := descriptorOf(f, path)
	if !ok {
		return nil, nil
	}
	a, err := safefile.AccessOf(d)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return []safefile.Access{a}, nil
}

// layers returns how many files the chain has.
func (im *Image) layers() int {
	n := 0
	for l := im.current(); l != nil; l = l.parent() {
		n++
	}
	return n
}

// Holds reports whether the file at path is the image or one of its parents.
func (im *Image) Holds(path string) bool {
	f, err := imagefile.Open(path, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	for l := im.current(); l != nil; l = l.parent() {
		if imagefile.Same(l.file, f) {
			return true
		}
	}
	return false
}

// The forms of paths in a parent locator (MS-VHDX 2.6.2.6.3).
const (
	win32Prefix  = `\\?\`
	volumePrefix = `\\?\Volume{`
	uncPrefix    = `\\?\UNC\`
)

// parentKeys returns the keys and values of the parent locator of a child, as MS-VHDX 2.6.2.6.3 has them. further
// are the parent's paths on Windows, beside the relative one: D:\folder\parent.vhdx, \\server\share\parent.vhdx, or
// \\?\Volume{GUID}\folder\parent.vhdx, one of a drive or server and one of a volume at the most.
//
// Where no path of a drive is given, the one here stands in as one of drive C: there are readers, libvhdi among
// them, that know no other key and look for its last part. A reader that follows it to another file finds
// that the linkage differs.
func parentKeys(child, parent string, further []string, dataWrite uuid.UUID) ([][2]string, error) {
	rel, err := relativePath(child, parent)
	if err != nil {
		return nil, fmt.Errorf("no relative path from %s to %s: %w", child, parent, err)
	}
	parent = absolute(parent)
	if strings.ContainsAny(rel, `\:`) || !utf8.ValidString(rel) {
		remedy := "rename the parent"
		if strings.Contains(rel, "/") {
			remedy = "rename that part of it, or create the child in the directory of the parent"
		}
		return nil, fmt.Errorf("the path %q cannot be stored in an image: it contains a backslash, a colon or invalid UTF-8; %s", rel, remedy)
	}
	if !strings.HasPrefix(rel, "..") {
		rel = "./" + rel
	}
	paths := map[string]string{ondisk.KeyRelativePath: backslashes(rel)}
	for _, p := range further {
		key, value, err := windowsPath(p)
		if err != nil {
			return nil, err
		}
		if paths[key] != "" {
			return nil, fmt.Errorf("the parent's path %q is given twice in the same form", p)
		}
		paths[key] = value
	}
	if paths[ondisk.KeyAbsolutePath] == "" && !strings.ContainsAny(parent, `\:`) && utf8.ValidString(parent) {
		paths[ondisk.KeyAbsolutePath] = win32Prefix + `C:` + backslashes(parent)
	}
	keys := [][2]string{{ondisk.KeyLinkage, ondisk.LinkageText(dataWrite)}}
	for _, k := range ondisk.PathKeys {
		if v := paths[k]; v != "" {
			keys = append(keys, [2]string{k, v})
		}
	}
	for _, kv := range keys {
		if len(ondisk.EncodeUTF16(kv[1])) > maxLocatorValue {
			return nil, errors.New("the path of the parent is longer than 32767 characters")
		}
	}
	return keys, nil
}

// relativePath returns the path from the directory of child to parent: as both are written, or, where that leads out of the
// directory, as it is without symbolic links.
func relativePath(child, parent string) (string, error) {
	homes := dirsOf(child)
	rel, err := filepath.Rel(absolute(homes[len(homes)-1]), absolute(parent))
	if err == nil && filepath.IsLocal(rel) {
		return rel, nil
	}
	real := filepath.Join(realPath(filepath.Dir(parent)), filepath.Base(parent))
	if short, rerr := filepath.Rel(realPath(homes[len(homes)-1]), real); rerr == nil && filepath.IsLocal(short) {
		return short, nil
	}
	return rel, err
}

const maxLocatorValue = 1<<16 - 2 // bytes; a 16-bit field holds the length

func backslashes(path string) string { return strings.ReplaceAll(path, "/", `\`) }

// windowsPath says which key of a parent locator a path is for, and how it is written there.
func windowsPath(p string) (key, value string, err error) {
	p = backslashes(p)
	bare := strings.TrimPrefix(p, win32Prefix)
	drive := len(bare) > 3 && bare[1:3] == `:\` && (bare[0]|0x20 >= 'a' && bare[0]|0x20 <= 'z')
	switch {
	case !utf8.ValidString(p) || strings.ContainsRune(p, 0):
	case strings.HasPrefix(p, volumePrefix) && strings.Contains(p[len(volumePrefix):], `}\`):
		return ondisk.KeyVolumePath, p, nil
	case drive:
		return ondisk.KeyAbsolutePath, win32Prefix + bare, nil
	case strings.HasPrefix(p, uncPrefix):
		return ondisk.KeyAbsolutePath, p, nil
	case strings.HasPrefix(p, `\\`) && !strings.HasPrefix(p, win32Prefix):
		return ondisk.KeyAbsolutePath, uncPrefix + p[2:], nil
	}
	return "", "", fmt.Errorf(`invalid parent path %q: give a form such as D:\folder\parent.vhdx, \\server\share\parent.vhdx or \\?\Volume{GUID}\folder\parent.vhdx`, p)
}
