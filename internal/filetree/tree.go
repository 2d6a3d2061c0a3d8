package filetree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// ErrDamaged is matched by the errors for what breaks a rule of its file system.
var ErrDamaged = errors.New("the file system is damaged")

// ErrCannotRead is matched by the errors for what a file system may hold, and this package does not read.
var ErrCannotRead = errors.New("vhdxfs cannot read it")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrDamaged, fmt.Errorf(format, args...))
}

func cannotRead(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrCannotRead, fmt.Errorf(format, args...))
}

// A File is a file, a directory or something else with a name. The name is that of the directory entry, whatever it holds.
type File struct {
	Name    string
	Mode    fs.FileMode // type and permissions; those for all where the file system has none
	Size    int64       // bytes
	ModTime time.Time
	id      uint64 // of the file system; the same for all names of a file

	data any // what the file system keeps with it
}

// A Sink takes the bytes of a file, from its start to its end.
type Sink interface {
	io.Writer
	Zeros(n int64) error // bytes; more than the file system holds may come
}

// A Tree is a file system. Only one goroutine may use it.
type Tree interface {
	Root() (*File, error)
	// List calls each for what is in a directory, in the order of the file system, without itself and its parent.
	List(dir *File, each func(*File) error) error
	// Read writes the content of a regular file.
	Read(f *File, to Sink) error
	// Link returns what a symbolic link leads to.
	Link(f *File) (string, error)
	// Note returns what its user should know; "" for nothing.
	Note() string
	// NoCase reports whether names that differ in case alone are the same.
	NoCase() bool
}

// Kinds are the file systems that Open reads, as package partition names them.
var Kinds = []string{"ext4", "XFS", "NTFS", "FAT", "exFAT", "ISO 9660"}

// Open opens the file system that a disk of size bytes holds.
func Open(disk io.ReaderAt, size int64, kind string) (t Tree, err error) {
	defer catch(&err)
	d := volume{disk, size}
	switch kind {
	case "ext4":
		return openExt(d)
	case "XFS":
		return openXFS(d)
	case "NTFS":
		return openNTFS(d)
	case "FAT":
		return openFAT(d)
	case "exFAT":
		return openExFAT(d)
	case "ISO 9660":
		return openISO(d)
	}
	return nil, cannotRead("no files can be read from %s", kind)
}

// catch turns a panic into an error: bytes that nobody has thought of must not end the program.
func catch(err *error) {
	if p := recover(); p != nil {
		*err = errors.Join(damaged("%v", p), *err)
	}
}

// A volume is the bytes of a file system.
type volume struct {
	io.ReaderAt
	size int64 // bytes
}

// read fills b from the byte off.
func (v volume) read(b []byte, off int64) error {
	if off < 0 || off > v.size || int64(len(b)) > v.size-off {
		return damaged("%d bytes at %#x are beyond the end", len(b), off)
	}
	if n, err := v.ReadAt(b, off); n < len(b) {
		return fmt.Errorf("read %d bytes at %#x: %w", len(b), off, err)
	}
	return nil
}

// at reads n bytes from the byte off.
func (v volume) at(off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	return b, v.read(b, off)
}

// A writer gives a file's extents to a sink, as much as the file has bytes.
type writer struct {
	v    volume
	to   Sink
	left int64 // bytes of the file
	data int64 // bytes of data that may still come: no file has more than the disk
	buf  []byte
}

const copySize = 1 << 20 // bytes

func (v volume) writer(to Sink, size int64) *writer {
	return &writer{v: v, to: to, left: size, data: v.size, buf: make([]byte, min(copySize, max(size, 1)))}
}

// extent writes n bytes of the disk from off on.
func (w *writer) extent(off, n int64) error {
	n = min(n, w.left)
	if w.data -= n; w.data < 0 {
		return damaged("a file has more data than the disk")
	}
	w.left -= n
	for n > 0 {
		b := w.buf[:min(n, int64(len(w.buf)))]
		if err := w.v.read(b, off); err != nil {
			return err
		}
		if _, err := w.to.Write(b); err != nil {
			return err
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// zeros writes n zeros.
func (w *writer) zeros(n int64) error {
	if n = min(n, w.left); n <= 0 {
		return nil
	}
	w.left -= n
	return w.to.Zeros(n)
}

// bytes writes what is known already.
func (w *writer) bytes(b []byte) error {
	b = b[:min(int64(len(b)), w.left)]
	w.left -= int64(len(b))
	_, err := w.to.Write(b)
	return err
}

// end writes zeros up to the end of the file.
func (w *writer) end() error { return w.zeros(w.left) }

// maxWhole is how much of a directory or a symbolic link is held in memory, in bytes.
const maxWhole = 64 << 20

// A whole is a sink that holds all in memory.
type whole struct{ b []byte }

func (w *whole) Write(p []byte) (int, error) {
	if len(w.b)+len(p) > maxWhole {
		return 0, cannotRead("a directory of more than %d bytes", maxWhole)
	}
	w.b = append(w.b, p...)
	return len(p), nil
}

func (w *whole) Zeros(n int64) error {
	if n > maxWhole {
		return cannotRead("a directory of more than %d bytes", maxWhole)
	}
	_, err := w.Write(make([]byte, n))
	return err
}

const (
	maxLinks = 40  // symbolic links on the way to a file, as the kernel has it
	maxDepth = 512 // of directories
)

// Find returns the file at a path from the root. Symbolic links on the way are followed inside the file system; one at the
// end only if follow is set.
func Find(t Tree, path string, follow bool) (f *File, err error) {
	defer catch(&err)
	root, err := t.Root()
	if err != nil {
		return nil, err
	}
	way := []*File{root}
	rest := split(path)
	for links := 0; len(rest) > 0; {
		element := rest[0]
		rest = rest[1:]
		here := way[len(way)-1]
		if element == ".." {
			way = way[:max(len(way)-1, 1)]
			continue
		}
		if !here.Mode.IsDir() {
			return nil, fmt.Errorf("%s: %q is not a directory", path, here.Name)
		}
		next, err := child(t, here, element)
		if err != nil {
			return nil, err
		}
		if next == nil {
			return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
		}
		if next.Mode.Type() != fs.ModeSymlink || len(rest) == 0 && !follow {
			if way = append(way, next); len(way) > maxDepth {
				return nil, cannotRead("more than %d directories deep", maxDepth)
			}
			continue
		}
		if links++; links > maxLinks {
			return nil, fmt.Errorf("%s: too many symbolic links", path)
		}
		to, err := t.Link(next)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(to, "/") {
			way = way[:1]
		}
		rest = append(split(to), rest...)
	}
	return way[len(way)-1], nil
}

func split(path string) (elements []string) {
	for e := range strings.SplitSeq(path, "/") {
		if e != "" && e != "." {
			elements = append(elements, e)
		}
	}
	return elements
}

var errFound = errors.New("found")

// child returns what has a name in a directory, nil if nothing has.
func child(t Tree, dir *File, name string) (found *File, err error) {
	err = t.List(dir, func(f *File) error {
		switch {
		case f.Name == name:
			found = f
			return errFound
		case t.NoCase() && strings.EqualFold(f.Name, name):
			found = f
		}
		return nil
	})
	if errors.Is(err, errFound) {
		err = nil
	}
	return found, err
}

// A Walker goes through directories, none of them twice.
type Walker struct {
	Tree Tree
	seen map[uint64]bool
}

// List is that of the tree, for a directory that was not listed before.
func (w *Walker) List(dir *File, depth int, each func(*File) error) (err error) {
	defer catch(&err)
	if w.seen == nil {
		w.seen = make(map[uint64]bool)
	}
	switch {
	case w.seen[dir.id]:
		return damaged("the directory %q is in more than one place", dir.Name)
	case depth > maxDepth:
		return cannotRead("more than %d directories deep", maxDepth)
	}
	w.seen[dir.id] = true
	return w.Tree.List(dir, each)
}

// Sorted returns what is in a directory, by name.
func (w *Walker) Sorted(dir *File, depth int) ([]*File, error) {
	const maxEntries = 4 << 20 // so that memory is bounded
	var list []*File
	err := w.List(dir, depth, func(f *File) error {
		if list = append(list, f); len(list) > maxEntries {
			return cannotRead("more than %d files in a directory", maxEntries)
		}
		return nil
	})
	slices.SortFunc(list, func(a, b *File) int { return strings.Compare(a.Name, b.Name) })
	return list, err
}

// Read writes the content of a regular file.
func Read(t Tree, f *File, to Sink) (err error) {
	defer catch(&err)
	if !f.Mode.IsRegular() {
		return cannotRead("%q is not a regular file", f.Name)
	}
	return t.Read(f, to)
}

// Link returns what a symbolic link leads to.
func Link(t Tree, f *File) (to string, err error) {
	defer catch(&err)
	return t.Link(f)
}

// The modes of files and directories where the file system has none.
const (
	plainFile = 0o666
	plainDir  = fs.ModeDir | 0o777
)

// unixMode returns the mode of which the file systems of Unix keep 16 bits.
func unixMode(m uint16) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	switch m >> 12 {
	case 1:
		mode |= fs.ModeNamedPipe
	case 2:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case 4:
		mode |= fs.ModeDir
	case 6:
		mode |= fs.ModeDevice
	case 8:
	case 10:
		mode |= fs.ModeSymlink
	case 12:
		mode |= fs.ModeSocket
	default:
		mode |= fs.ModeIrregular
	}
	for bit, flag := range map[uint16]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= flag
		}
	}
	return mode
}
