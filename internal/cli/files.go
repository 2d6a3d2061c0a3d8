package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/internal/filesystem"
	"github.com/vhdxfs/vhdxfs/internal/filetree"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/partition"
	"github.com/vhdxfs/vhdxfs/internal/sandbox"
)

// A filesCommand reads the files of an image without mounting anything.
type filesCommand struct {
	options   []string
	partition string
	json      bool
	recursive bool
}

func newFiles() *cobra.Command {
	var c filesCommand
	cmd := &cobra.Command{
		Use:   "files [flags] IMAGE [PATH]",
		Short: "List the files on an image, without mounting it",
		Long: `List the files on the disk of an image: a directory or a file at PATH, or the root directory. Nothing is mounted, and root
is not needed. ` + filesHelp,
		Example: `  vhdxfs files data.vhdx
  vhdxfs files -R data.vhdx /home
  vhdxfs files --partition ntfs windows.vhdx /Users`,
		Args:              pathArgs,
		ValidArgsFunction: completeImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.withTrees(cmd, args[0], nil, func(list []*volumeTree) error { return c.list(cmd, list, path.Join(args[1:]...)) })
		},
	}
	cmd.Flags().BoolVarP(&c.recursive, "recursive", "R", false, "list all directories below as well")
	c.addFlags(cmd)
	return cmd
}

// filesHelp is the part of the help that files and extract share.
const filesHelp = `The file systems ext2 to ext4, XFS, NTFS, FAT, exFAT and ISO 9660 can be read, but not encrypted ones.

If the disk has several file systems, the first element of a path is the name of one, as vhdxfs open names its directories: the
label, or p and the number of the partition. --partition selects one, and paths begin in its root directory.

Symbolic links in a path are followed inside the file system. A journal is not replayed: if the file system was not
unmounted, a warning says so, and the newest changes may be missing.`

func (c *filesCommand) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.partition, "partition", "", "use only one partition: `N|LABEL|TYPE` is its number, label or file system")
	addJSON(cmd, &c.json)
	addImageOptions(cmd, &c.options)
}

// pathArgs wants an image and perhaps a path.
func pathArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 2 {
		return exactArgs("IMAGE", "PATH")(cmd, args)
	}
	return exactArgs("IMAGE")(cmd, args)
}

// A volumeTree is a file system of a disk, with the name that it has in a path.
type volumeTree struct {
	*openVolume
	directory string // "" for the only one
	disk      io.ReaderAt
	tree      filetree.Tree // nil until it is opened
}

// A diskReader is the disk of an image.
type diskReader struct {
	io.ReaderAt
	size, sector int64 // bytes
}

// withTrees calls do with the file systems that the flags mean, of an image or of one that is mounted. Before anything of the
// image is read, the process gives up what it does not need; directory is where do makes files.
func (c *filesCommand) withTrees(cmd *cobra.Command, name string, directory []string, do func([]*volumeTree) error) error {
	o, err := openOptions(c.options)
	if err != nil {
		return err
	}
	use := func(d diskReader) error {
		list, err := c.trees(name, d)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return do(list)
	}
	if m, err := active.Find(name); err == nil && m.State == active.Serving {
		return useMounted(cmd.Context(), m, directory, use)
	}
	confineReader(cmd.Context(), []string{name}, o, directory...)
	d, err := disk.Open(name, disk.Auto, o)
	if err != nil {
		return withAdvice(err)
	}
	return errors.Join(use(diskReader{d, d.Size(), cmp.Or(d.SectorSize, 512)}), d.Close())
}

// useMounted calls use with the disk that a mount shows, which is what its writers have written by now.
func useMounted(ctx context.Context, m *active.Mount, directory []string, use func(diskReader) error) error {
	sector, err := mounts.Attribute(m.MountPoint, "logical_sector_size")
	if err != nil {
		return err
	}
	d := diskReader{}
	if d.sector, err = strconv.ParseInt(sector, 10, 64); err != nil {
		return fmt.Errorf("sector size of %s: %w", m.Image, err)
	}
	f, err := os.Open(m.Disk())
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	d.ReaderAt, d.size = f, st.Size()
	if own, _ := ctx.Value(ownProcess{}).(bool); own {
		_ = time.Now().String() // which reads the time zone, if nothing has yet
		_ = sandbox.Confine(sandbox.Rules{Read: []string{ownFiles}, Make: directory, Empty: parents(directory), Capabilities: makerCapabilities(directory), Socket: -1})
	}
	return use(d)
}

// trees finds the file systems of a disk.
func (c *filesCommand) trees(name string, d diskReader) ([]*volumeTree, error) {
	var all []*openVolume
	starts := map[*openVolume]int64{}
	for _, v := range partition.Inside(d, d.size, d.sector).Volumes {
		o := &openVolume{Partition: v.Number, Size: v.Len, FileSystem: v.FileSystem, Label: v.Label, mountable: slices.Contains(filetree.Kinds, v.FileSystem)}
		switch {
		case o.mountable:
		case filesystem.CanMount(v.FileSystem):
			o.Note = "its files can only be read when it is mounted; use vhdxfs open"
		default:
			o.Note = o.advice()
		}
		all = append(all, o)
		starts[o] = v.Off
	}
	if len(all) == 0 {
		return nil, errors.New("no partition table and no file system that vhdxfs knows")
	}
	var chosen []*openVolume
	if c.partition != "" {
		v, err := volumeNamed(c.partition, all)
		if err != nil {
			return nil, err
		}
		if !v.mountable {
			return nil, fmt.Errorf("the files of %s cannot be read: %s", v.describe(), v.Note)
		}
		chosen = []*openVolume{v}
	} else if chosen = slices.DeleteFunc(slices.Clone(all), func(v *openVolume) bool { return !v.mountable }); len(chosen) == 0 {
		var notes []string
		for _, v := range all {
			notes = append(notes, fmt.Sprintf("%s: %s", v.describe(), v.Note))
		}
		return nil, fmt.Errorf("no file system whose files can be read; %s", strings.Join(notes, "; "))
	}
	var list []*volumeTree
	for i, directory := range dirNames(chosen) {
		v := chosen[i]
		if len(chosen) == 1 {
			directory = ""
		}
		list = append(list, &volumeTree{openVolume: v, directory: directory, disk: io.NewSectionReader(d, starts[v], v.Size)})
	}
	return list, nil
}

// open opens the file system, and warns about what may be missing.
func (v *volumeTree) open(cmd *cobra.Command) error {
	if v.tree != nil {
		return nil
	}
	t, err := filetree.Open(v.disk, v.Size, v.FileSystem)
	if err != nil {
		return fmt.Errorf("%s: %w", v.describe(), err)
	}
	if note := t.Note(); note != "" {
		warn(cmd, "%s: %s", v.describe(), note)
	}
	v.tree = t
	return nil
}

// locate returns the file system and the path in it that a path means; nil for the root above several file systems.
func locate(list []*volumeTree, name string) (*volumeTree, string, error) {
	if list[0].directory == "" {
		if v := list[0]; v.FileSystem == "NTFS" || strings.Contains(v.FileSystem, "FAT") {
			name = strings.ReplaceAll(name, `\`, "/")
		}
		return list[0], name, nil
	}
	first, rest, _ := strings.Cut(strings.TrimLeft(path.Clean("/"+name), "/"), "/")
	if first == "" {
		return nil, "", nil
	}
	var names []string
	for _, v := range list {
		if v.directory == first {
			return v, rest, nil
		}
		names = append(names, v.directory)
	}
	return nil, "", fmt.Errorf("%s: there are several file systems; begin with one of %s", name, strings.Join(names, ", "))
}

// A fileEntry is a file as files lists it.
type fileEntry struct {
	Path     string    `json:"path"`
	Type     string    `json:"type"`
	Mode     string    `json:"mode"`
	Size     int64     `json:"size"` // bytes
	Modified time.Time `json:"modified,omitzero"`
	Link     string    `json:"link,omitempty"`
}

// A fileList prints files as they come.
type fileList struct {
	w    *bufio.Writer
	json *jsonList
	size sizeWriter
}

func (l *fileList) add(t filetree.Tree, f *filetree.File, at string) error {
	e := fileEntry{Path: at, Type: typeOf(f), Mode: modeOf(f.Mode), Size: f.Size, Modified: f.ModTime.UTC()}
	if e.Type == "link" {
		to, err := filetree.Link(t, f)
		if err != nil {
			return err
		}
		e.Link = to
	}
	if l.json != nil {
		return l.json.add(e)
	}
	text := printable(at)
	if e.Link != "" {
		text += " -> " + printable(e.Link)
	}
	size := "-"
	if e.Type == "file" {
		size = l.size(f.Size)
	}
	modified := "-"
	if !f.ModTime.IsZero() {
		modified = f.ModTime.Format("2006-01-02 15:04")
	}
	_, err := fmt.Fprintf(l.w, "%s  %10s  %16s  %s\n", e.Mode, size, modified, text)
	return err
}

// modeOf writes a mode as ls does.
func modeOf(m os.FileMode) string {
	b := []byte("-" + m.Perm().String()[1:])
	for _, t := range []struct {
		bits os.FileMode
		c    byte
	}{
		{os.ModeDir, 'd'}, {os.ModeSymlink, 'l'}, {os.ModeNamedPipe, 'p'}, {os.ModeSocket, 's'}, {os.ModeDevice, 'b'},
		{os.ModeDevice | os.ModeCharDevice, 'c'}, {os.ModeIrregular, '?'},
	} {
		if m.Type()&t.bits == t.bits {
			b[0] = t.c
		}
	}
	for _, s := range []struct {
		bit os.FileMode
		at  int
		c   byte
	}{{os.ModeSetuid, 3, 's'}, {os.ModeSetgid, 6, 's'}, {os.ModeSticky, 9, 't'}} {
		switch {
		case m&s.bit == 0:
		case b[s.at] == 'x':
			b[s.at] = s.c
		default:
			b[s.at] = s.c - 'a' + 'A'
		}
	}
	return string(b)
}

// typeOf returns the type of a file in a word.
func typeOf(f *filetree.File) string {
	switch {
	case f.Mode.IsRegular():
		return "file"
	case f.Mode.IsDir():
		return "directory"
	case f.Mode&os.ModeSymlink != 0:
		return "link"
	}
	return "special"
}

// list prints what is at a path.
func (c *filesCommand) list(cmd *cobra.Command, list []*volumeTree, name string) error {
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	l := &fileList{w: bufio.NewWriter(cmd.OutOrStdout()), size: sizesOf(cmd)}
	if c.json {
		l.json = &jsonList{w: l.w}
	}
	v, rest, err := locate(list, name)
	switch {
	case err != nil:
		return err
	case v == nil && !c.recursive:
		for _, v := range list {
			f := &filetree.File{Mode: os.ModeDir | 0o755}
			if err := l.add(nil, f, v.directory); err != nil {
				return err
			}
		}
	case v == nil:
		for _, v := range list {
			if err = c.listAt(ctx, cmd, l, v, ""); err != nil {
				break
			}
		}
	default:
		err = c.listAt(ctx, cmd, l, v, rest)
	}
	if err == nil && l.json != nil {
		err = l.json.end()
	}
	return errors.Join(interrupted(err, "the list is not complete"), l.w.Flush())
}

// listAt prints what is at a path of a file system.
func (c *filesCommand) listAt(ctx context.Context, cmd *cobra.Command, l *fileList, v *volumeTree, name string) error {
	if err := v.open(cmd); err != nil {
		return err
	}
	f, err := filetree.Find(v.tree, name, false)
	if err == nil && f.Mode&os.ModeSymlink != 0 && strings.HasSuffix(name, "/") {
		f, err = filetree.Find(v.tree, name, true)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", v.describe(), err)
	}
	at := path.Join("/", v.directory, name)
	if !f.Mode.IsDir() {
		return l.add(v.tree, f, at)
	}
	return c.listBelow(ctx, l, &filetree.Walker{Tree: v.tree}, f, at, 0)
}

func (c *filesCommand) listBelow(ctx context.Context, l *fileList, w *filetree.Walker, dir *filetree.File, at string, depth int) error {
	list, err := w.Sorted(dir, depth)
	if err != nil {
		return fmt.Errorf("%s: %w", printable(at), err)
	}
	for _, f := range list {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name := f.Name
		if c.recursive {
			name = strings.TrimSuffix(at, "/") + "/" + f.Name
		}
		err := l.add(w.Tree, f, name)
		if err == nil && c.recursive && f.Mode.IsDir() {
			err = c.listBelow(ctx, l, w, f, name, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
