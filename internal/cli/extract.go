package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/filetree"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/internal/sandbox"
)

// An extractCommand copies files out of an image.
type extractCommand struct {
	filesCommand
	force bool
}

func newExtract() *cobra.Command {
	var c extractCommand
	cmd := &cobra.Command{
		Use:   "extract [flags] IMAGE PATH... DIR",
		Short: "Copy files out of an image, without mounting it",
		Long: `Copy files and directories from the disk of an image into DIR, which is created if it does not exist. Nothing is mounted,
and root is not needed. ` + filesHelp + `

The copies belong to you. They keep their permissions as far as the image file has them too, without set-user-ID. They
appear in DIR when all are complete; after an error or an interruption, none appears. Existing files are kept, unless
--force is given. Device files, sockets, and symbolic links that lead out of what is copied are left out with a warning,
and the exit status is 3.`,
		Example: `  vhdxfs extract data.vhdx /etc/fstab /home/ann .
  vhdxfs extract --partition ntfs windows.vhdx /Users/me/Documents ~/rescued
  vhdxfs extract data.vhdx / everything`,
		Args:              extractArgs,
		ValidArgsFunction: completeImage,
		RunE:              c.run,
	}
	cmd.Flags().BoolVar(&c.force, "force", false, "replace existing files, and add to existing directories")
	c.addFlags(cmd)
	return cmd
}

// extractArgs wants three arguments or more.
func extractArgs(cmd *cobra.Command, args []string) error {
	if len(args) <= 3 {
		return exactArgs("IMAGE", "PATH", "DIR")(cmd, args)
	}
	return someArgs("IMAGE")(cmd, args)
}

// An extractReport is what the JSON of extract says.
type extractReport struct {
	Image       string    `json:"image"`
	Directory   string    `json:"directory"` // where the files are
	Files       int64     `json:"files"`
	Directories int64     `json:"directories"`
	Links       int64     `json:"links"`
	Bytes       int64     `json:"bytes"`    // of data
	LeftOut     []skipped `json:"left_out"` // what was not copied
}

// A skipped file was not copied.
type skipped struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

func (c *extractCommand) run(cmd *cobra.Command, args []string) (err error) {
	image, paths, dir := args[0], args[1:len(args)-1], args[len(args)-1]
	target, err := absPath(dir)
	if err != nil {
		return err
	}
	into, made, err := openTarget(target)
	if err != nil {
		return err
	}
	defer into.Close()
	access, err := accessOf(image)
	if err != nil {
		return errors.Join(err, made())
	}
	e := &extractor{cmd: cmd, force: c.force, limit: into.Limit(access), into: into, umask: umask()}
	e.limit |= e.limit >> 2 & 0o111 // who may read the image may execute what is in it
	e.report = extractReport{Image: image, Directory: target, LeftOut: []skipped{}}
	err = c.withTrees(cmd, image, []string{target}, func(list []*volumeTree) error { return e.all(list, paths) })
	if err != nil {
		return errors.Join(interrupted(err, "nothing was copied"), made())
	}
	if c.json {
		err = writeJSON(cmd.OutOrStdout(), e.report)
	} else {
		r := e.report
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s in %s copied\n", printable(target), sizesOf(cmd)(r.Bytes), plural(int(min(r.Files, math.MaxInt32)), "file"))
	}
	if n := len(e.report.LeftOut); err == nil && n > 0 {
		err = &statusError{statusWarnings, fmt.Errorf("%s: %s left out, as the warnings say", image, plural(n, "file"))}
	}
	return err
}

// umask returns that of this process.
func umask() fs.FileMode {
	m := unix.Umask(0o077)
	unix.Umask(m)
	return fs.FileMode(m).Perm()
}

// accessOf returns who may use the image.
func accessOf(image string) ([]safefile.Access, error) {
	f, err := safefile.Open(image, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	a, err := safefile.AccessOf(f)
	return []safefile.Access{a}, err
}

// openTarget opens the directory for the files, and makes it if it is not there. made takes that back.
func openTarget(dir string) (into *safefile.Dir, made func() error, err error) {
	parent, name, err := safefile.Reach(dir)
	if errors.Is(err, unix.EISDIR) { // the root directory
		into, err = safefile.OpenDir(dir)
		return into, func() error { return nil }, err
	}
	if err != nil {
		return nil, nil, err
	}
	into, err = parent.MakeDir(name, 0o777&^umask())
	if err == nil {
		return into, func() error { return errors.Join(parent.RemoveDir(name), parent.Close()) }, nil
	}
	if errors.Is(err, fs.ErrExist) {
		into, err = parent.OpenChild(name)
	}
	return into, parent.Close, err
}

// makerCapabilities are those that a process keeps that makes files in directories, which may belong to others.
func makerCapabilities(directories []string) sandbox.Capabilities {
	if len(directories) == 0 {
		return 0
	}
	return sandbox.CapabilitySet(unix.CAP_DAC_OVERRIDE)
}

// An extractor copies files into a directory. It copies them into a new directory there first, from which they move at the end.
type extractor struct {
	cmd    *cobra.Command
	ctx    context.Context
	force  bool
	limit  fs.FileMode // the permissions that a file may have
	umask  fs.FileMode
	into   *safefile.Dir
	report extractReport

	tree *filetree.Walker
	left int64 // bytes of data that may still come
}

// dataFactor is how much more data than the file system is large may be copied: files may share data, and have several
// names.
const dataFactor = 4

// all copies what is at the paths.
func (e *extractor) all(list []*volumeTree, paths []string) (err error) {
	var stop func()
	e.ctx, stop = interruptible(e.cmd.Context())
	defer stop()
	name := fmt.Sprintf(".vhdxfs-%016x.part", rand.Uint64())
	part, err := e.into.MakeDir(name, 0o700)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, part.Close(), e.into.RemoveAll(name))
	}()
	for _, p := range paths {
		v, rest, err := locate(list, p)
		which := []*volumeTree{v}
		if v == nil {
			which = list // all of the disk
		}
		for _, v := range which {
			if err == nil {
				err = e.path(v, rest, part)
			}
		}
		if err != nil {
			return err
		}
	}
	if err := e.deliver(part, e.into, true); err != nil { // before anything moves
		return err
	}
	if err := part.Syncfs(); err != nil {
		return err
	}
	return e.deliver(part, e.into, false)
}

// path copies what is at a path of a file system.
func (e *extractor) path(v *volumeTree, name string, part *safefile.Dir) error {
	if err := v.open(e.cmd); err != nil {
		return err
	}
	f, err := filetree.Find(v.tree, name, true)
	if err != nil {
		return fmt.Errorf("%s: %w", v.describe(), err)
	}
	e.tree, e.left = &filetree.Walker{Tree: v.tree}, v.Size
	if e.left = v.Size; v.Size < math.MaxInt64/dataFactor {
		e.left *= dataFactor
	}
	switch f.Name = path.Base(path.Clean("/" + name)); {
	case f.Name != "/":
		return e.one(f, part, f.Name, 0)
	case v.directory == "":
		return e.children(f, part, "", 0)
	}
	f.Name = v.directory
	return e.one(f, part, f.Name, 0)
}

// skip leaves a file out.
func (e *extractor) skip(at, reason string, args ...any) {
	reason = fmt.Sprintf(reason, args...)
	const maxListed = 10000
	if len(e.report.LeftOut) < maxListed {
		e.report.LeftOut = append(e.report.LeftOut, skipped{at, reason})
		warn(e.cmd, "%s: left out: %s", printable(at), reason)
	}
}

// one copies a file, or a directory with all that is in it, into a directory at a depth below the target.
func (e *extractor) one(f *filetree.File, to *safefile.Dir, at string, depth int) error {
	if e.ctx.Err() != nil {
		return context.Cause(e.ctx)
	}
	const maxName = 255
	if f.Name == "" || f.Name == "." || f.Name == ".." || len(f.Name) > maxName || strings.ContainsAny(f.Name, "/\x00") {
		e.skip(at, "its name cannot be used here")
		return nil
	}
	switch typeOf(f) {
	case "directory":
		return e.directory(f, to, at, depth)
	case "file":
		return e.file(f, to, at)
	case "link":
		return e.link(f, to, at, depth)
	}
	e.skip(at, "it is not a file that can be copied (%s)", f.Mode.Type())
	return nil
}

func (e *extractor) directory(f *filetree.File, to *safefile.Dir, at string, depth int) error {
	directory, err := to.MakeDir(f.Name, 0o700)
	if errors.Is(err, fs.ErrExist) { // that an earlier path has made, or a name that differs in nothing here
		return usageError("%s: more than one of the files has this name", printable(at))
	}
	if err != nil {
		return err
	}
	defer directory.Close()
	if err := e.children(f, directory, at, depth+1); err != nil {
		return err
	}
	e.report.Directories++
	// Others may get in when all is there. Its owner always can, to be able to remove it.
	if err := directory.Chmod(f.Mode.Perm()&^e.umask&e.limit | 0o700); err != nil {
		return err
	}
	return ignoreTime(directory.SetTime(f.ModTime))
}

// children copies what is in a directory.
func (e *extractor) children(f *filetree.File, directory *safefile.Dir, at string, depth int) error {
	list, err := e.tree.Sorted(f, depth)
	if err != nil {
		return fmt.Errorf("%s: %w", printable(at), err)
	}
	for _, child := range list {
		if err := e.one(child, directory, path.Join(at, child.Name), depth); err != nil {
			return err
		}
	}
	return nil
}

// ignoreTime drops the error for a time that the file system cannot store.
func ignoreTime(err error) error {
	if errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOVERFLOW) {
		return nil
	}
	return err
}

func (e *extractor) file(f *filetree.File, to *safefile.Dir, at string) error {
	out, err := to.Create(f.Name, e.into.Join(at), 0o600)
	if errors.Is(err, fs.ErrExist) {
		return usageError("%s: more than one of the files has this name", printable(at))
	}
	if err != nil {
		return err
	}
	defer out.Close()
	s := &fileSink{e: e, f: out}
	err = filetree.Read(e.tree.Tree, f, s)
	switch {
	case errors.Is(err, filetree.ErrCannotRead):
		e.skip(at, "%v", err)
		return to.Remove(f.Name)
	case err != nil && s.err == nil:
		return fmt.Errorf("%s: %w", printable(at), err)
	}
	if err == nil {
		err = out.Truncate(f.Size)
	}
	if err == nil {
		err = out.Chmod(f.Mode.Perm() &^ e.umask & e.limit)
	}
	if err == nil {
		err = ignoreTime(safefile.SetTime(out, f.ModTime))
	}
	if err == nil {
		err = out.Close()
	}
	if err == nil {
		e.report.Files++
	}
	return err // which names the copy
}

// A fileSink writes a file, and leaves holes for zeros.
type fileSink struct {
	e   *extractor
	f   *os.File
	at  int64
	err error // of a write
}

func (s *fileSink) Write(b []byte) (int, error) {
	if s.e.ctx.Err() != nil {
		return 0, context.Cause(s.e.ctx)
	}
	if s.e.left -= int64(len(b)); s.e.left < 0 {
		return 0, fmt.Errorf("the files hold more than %d times as much data as the file system is large; extract a part of them", dataFactor)
	}
	n, err := s.f.WriteAt(b, s.at)
	s.at += int64(n)
	s.e.report.Bytes += int64(n)
	s.err = err
	return n, err
}

func (s *fileSink) Zeros(n int64) error {
	if s.e.ctx.Err() != nil {
		return context.Cause(s.e.ctx)
	}
	s.at += n
	return nil
}

// link makes a symbolic link that stays below the target.
func (e *extractor) link(f *filetree.File, to *safefile.Dir, at string, depth int) error {
	target, err := filetree.Link(e.tree.Tree, f)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", printable(at), err)
	case !staysBelow(target, depth):
		e.skip(at, "the symbolic link leads to %s", printable(target))
		return nil
	}
	err = to.Symlink(target, f.Name)
	if errors.Is(err, fs.ErrExist) {
		return usageError("%s: more than one of the files has this name", printable(at))
	}
	if err == nil {
		e.report.Links++
	}
	return err
}

// staysBelow reports whether a symbolic link in a directory at a depth leads out of the root of it, whatever other links of
// this kind are there: so ".." may stand only at its start, where it leads up from a directory that is none.
func staysBelow(target string, depth int) bool {
	if target == "" || strings.HasPrefix(target, "/") || strings.ContainsRune(target, 0) {
		return false
	}
	leading, ups := true, 0
	for element := range strings.SplitSeq(target, "/") {
		switch element {
		case "", ".":
		case "..":
			if ups++; !leading || ups > depth {
				return false
			}
		default:
			leading = false
		}
	}
	return true
}

// deliver moves what is in a directory to another one, or with try only looks whether it can. A directory that is there already
// gets what is in the new one, if that is allowed.
func (e *extractor) deliver(from, to *safefile.Dir, try bool) error {
	names, err := from.Names(0)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := error(fs.ErrExist)
		if _, serr := to.Stat(name); errors.Is(serr, fs.ErrNotExist) {
			if err = nil; !try {
				err = from.Move(name, to, name, false)
			}
		} else if serr != nil {
			return serr
		}
		if errors.Is(err, fs.ErrExist) {
			err = e.replace(from, to, name, try)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// replace is deliver for a name that is taken.
func (e *extractor) replace(from, to *safefile.Dir, name string, try bool) error {
	if !e.force {
		return usageError("%s already exists; use --force to replace it", printable(to.Join(name)))
	}
	isDirectory := func(d *safefile.Dir) bool {
		st, err := d.Stat(name)
		return err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
	}
	switch a, b := isDirectory(from), isDirectory(to); {
	case a != b:
		return usageError("%s already exists: a file cannot replace a directory, nor a directory a file", printable(to.Join(name)))
	case !a && try:
		return nil
	case !a:
		return from.Move(name, to, name, true)
	}
	sub, err := from.OpenChild(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	there, err := to.OpenChild(name)
	if err != nil {
		return err
	}
	defer there.Close()
	return e.deliver(sub, there, try)
}
