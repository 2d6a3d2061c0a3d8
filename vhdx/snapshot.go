package vhdx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"vhdxfs/internal/newfile"
	"vhdxfs/vhdx/imagefile"
)

// SnapshotOptions says how to make a snapshot.
type SnapshotOptions struct {
	Open        Options  // Parents, ParentDirs, CacheSize and Lock count
	ParentPaths []string // as in CreateOptions
	KeepName    bool     // the child gets the name of the image

	step func(name string) // called after each step that changes a folder, by tests
}

func (o *SnapshotOptions) done(step string) {
	if o.step != nil {
		o.step(step)
	}
}

// SnapshotResult says where the two files are.
type SnapshotResult struct {
	Frozen string `json:"frozen"` // what the disk was, from now on a parent that must not be written
	Child  string `json:"child"`  // what goes on
}

// Snapshot freezes the image at path: it makes a differencing child of it, to which is written from now on. The image
// must not be in use for writing. Nothing of it changes, unless its log had to be replayed. name is that of the new
// file in its folder: the child, or, with KeepName, what the image is called from then on; "" chooses one by the time.
//
// With KeepName the image gets its new name beside the old one, a hard link, and then the complete child takes the
// old name in one step. After a cut either the image or the child has the old name, and the image has the new one at
// least if the child has the old one.
func Snapshot(ctx context.Context, path, name string, o SnapshotOptions) (_ *SnapshotResult, err error) {
	o.Open.AnyParent = false
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	image := path
	if l, err := os.Lstat(path); err == nil && l.Mode().Type() == fs.ModeSymlink {
		image = realPath(path) // its folder is where parent and child belong
	}
	switch {
	case name == "" && !st.Mode().IsRegular(), o.KeepName && !st.Mode().IsRegular():
		return nil, optionsError{fmt.Errorf("%s is no regular file; name the child, and leave the image its name", path)}
	case name == "":
		if own, err := imagefile.MountedAlone(image); err != nil {
			return nil, err
		} else if own {
			return nil, aloneError(image)
		}
		name = freeName(image, o.KeepName)
	}
	im, err := openSettled(image, o.Open)
	if err != nil {
		return nil, err
	}
	// Its lock keeps writers off until there is a child that says what it was.
	defer func() { err = errors.Join(err, im.Close()) }()
	s := &snapshot{ctx: ctx, image: image, st: st, o: o}
	if o.KeepName {
		return s.keepName(name)
	}
	if err := s.create(name, image); err != nil {
		return nil, err
	}
	return &SnapshotResult{Frozen: image, Child: name}, nil
}

// aloneError says that nothing can be put beside an image that is a mount by itself.
func aloneError(image string) error {
	return optionsError{fmt.Errorf("%s is a mount by itself, as in a container; a child in this folder would not be beside it", image)}
}

// openSettled opens an image for reading, after replaying its log, if there is one to replay.
func openSettled(path string, o Options) (*Image, error) {
	o.Writable = false
	im, err := Open(path, o)
	if err != nil || im.top.replay == nil {
		return im, err
	}
	if err := im.Close(); err != nil {
		return nil, err
	}
	o.Writable, o.Commit, o.IdleClean = true, 0, 0
	if im, err = Open(path, o); err != nil {
		return nil, fmt.Errorf("replay the log: %w", err)
	}
	if err := im.Close(); err != nil {
		return nil, err
	}
	o.Writable = false
	return Open(path, o)
}

// freeName returns the path of a new file beside the image, named after it and the time.
func freeName(image string, keepName bool) string {
	dir, base := filepath.Split(image)
	ext := filepath.Ext(base)
	stem := strings.TrimSuffix(base, ext)
	if !keepName {
		ext = ".avhdx" // as Hyper-V names children
	}
	for i := 1; ; i++ {
		end := "-" + time.Now().Format("20060102-150405") + ext
		if i > 1 {
			end = fmt.Sprintf("%s-%d%s", strings.TrimSuffix(end, ext), i, ext)
		}
		name := filepath.Join(dir, shortened(stem, maxName-len(end))+end)
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) || i == 1000 {
			return name
		}
	}
}

// maxName is how long the name of a file can be, in bytes.
const maxName = 255

// shortened returns as many characters of s, from its begin, as fit into n bytes.
func shortened(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n = max(n, 0); n > 0 && !utf8.RuneStart(s[n]); n-- {
	}
	return s[:n]
}

// A snapshot is one call of Snapshot.
type snapshot struct {
	ctx   context.Context
	image string
	st    os.FileInfo // of the image
	o     SnapshotOptions
}

// create makes a child of parent at path that the same people may use.
func (s *snapshot) create(path, parent string) error {
	o := CreateOptions{Parent: parent, ParentPaths: s.o.ParentPaths, Open: s.o.Open}
	b, err := NewBuilder(s.ctx, path, o)
	if err != nil {
		return err
	}
	if err = b.Finish(); err == nil && s.st.Mode().IsRegular() {
		err = copyMode(b.TempPath(), s.st)
	}
	if err != nil {
		return errors.Join(err, b.Discard())
	}
	return b.Commit()
}

// keepName gives the image the new name, and its own to the child.
func (s *snapshot) keepName(frozen string) (*SnapshotResult, error) {
	if realPath(filepath.Dir(frozen)) != realPath(filepath.Dir(s.image)) {
		return nil, optionsError{fmt.Errorf("%s is in another folder than the image, where neither it nor its own parent would be found", frozen)}
	}
	// Two snapshots can read the image at once, and the second would take the place of the child of the first.
	f, err := imagefile.Open(s.image, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // and with it the lock
	if err := f.Lock(s.o.Open.Lock, imagefile.Renaming); err != nil {
		return nil, err
	}
	linked, err := linkBeside(s.image, frozen)
	if err != nil {
		return nil, err
	}
	s.o.done("link")
	if err := s.takeName(frozen); err != nil {
		// The new name goes only while the image has its own: not if the child has that, and was not made durable.
		if two, terr := twoNames(s.image, frozen); linked && two && terr == nil {
			err = errors.Join(err, os.Remove(frozen))
		}
		return nil, err
	}
	return &SnapshotResult{Frozen: frozen, Child: s.image}, nil
}

// linkBeside gives the file a second name, and reports false if it has that already, from an attempt that was cut.
func linkBeside(file, name string) (linked bool, err error) {
	err = os.Link(file, name)
	switch {
	case err == nil:
		return true, newfile.SyncDir(filepath.Dir(name))
	case !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.EPERM) && !errors.Is(err, errors.ErrUnsupported):
		return false, err
	case !errors.Is(err, fs.ErrExist):
		return false, fmt.Errorf("%w; on a file system without hard links, rename the image and make its child with create --parent", err)
	}
	if two, err := twoNames(file, name); err != nil || two {
		return false, err
	}
	return false, fmt.Errorf("%s exists; it is left as it is: %w", name, fs.ErrExist)
}

// twoNames reports whether both paths, in one folder, are names of one file, and not one name: that might be written
// in two ways where case does not matter.
func twoNames(a, b string) (bool, error) {
	sa, err := os.Lstat(a)
	if err != nil {
		return false, err
	}
	sb, err := os.Lstat(b)
	if err != nil || !os.SameFile(sa, sb) {
		return false, err
	}
	entries, err := os.ReadDir(filepath.Dir(a))
	if err != nil {
		return false, err
	}
	listed := func(path string) bool {
		return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == filepath.Base(path) })
	}
	return filepath.Base(a) != filepath.Base(b) && listed(a) && listed(b), nil
}

// takeName makes a child of the image under its new name, and puts it in the place of the old name.
func (s *snapshot) takeName(frozen string) error {
	temp := newfile.TempName(s.image)
	if err := s.create(temp, frozen); err != nil {
		return err
	}
	s.o.done("create")
	err := inPlace(s.image, s.st)
	if err == nil {
		err = os.Rename(temp, s.image)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	s.o.done("rename")
	return newfile.SyncDir(filepath.Dir(s.image))
}

// inPlace returns an error unless the image st is at the path.
func inPlace(path string, st os.FileInfo) error {
	there, err := os.Lstat(path)
	if err == nil && !os.SameFile(there, st) {
		err = errors.New("another file is there now")
	}
	if err != nil {
		return fmt.Errorf("%s is not where the image is any more: %w", path, err)
	}
	return nil
}

// copyMode gives the file at path the permissions and the owner of another, as far as we may.
func copyMode(path string, from os.FileInfo) error {
	var err error
	if st, ok := from.Sys().(*syscall.Stat_t); ok {
		err = os.Chown(path, int(st.Uid), int(st.Gid))
	}
	if err == nil || errors.Is(err, fs.ErrPermission) {
		err = os.Chmod(path, from.Mode().Perm())
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil // they are ours, or the file system has none
	}
	return err
}
