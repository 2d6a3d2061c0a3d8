package vhdx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/vhdxfs/vhdxfs/internal/newfile"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// SnapshotOptions says how to make a snapshot.
type SnapshotOptions struct {
	Open        Options  // Parents, ParentDirs, CacheSize and Lock count
	ParentPaths []string // as in CreateOptions
	KeepName    bool     // the child gets the name of the image

	// Check, which may be nil, returns an error if an image other than child, "" for none, keeps this one from being made.
	// It is called before anything is made, when no other snapshot of the image can begin, and again with the child.
	Check func(child string) error

	step func(name string) // called after each step that changes a directory, by tests
}

func (o *SnapshotOptions) check(child string) error {
	if o.Check == nil {
		return nil
	}
	return o.Check(child)
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
// must not be in use for writing. Nothing of it changes, unless its log had to be replayed. name is the path of the new
// file, in its directory: the child, or, with KeepName, what the image is called from then on; "" chooses one by the time.
//
// With KeepName the image gets its new name beside the old one, a hard link, and then the complete child takes the
// old name in one step. After a cut either the image or the child has the old name, and the image has the new one at
// least if the child has the old one.
//
// Two snapshots can read the image at once, but not be made at once: the second one waits for the first. Where the file system
// has no locks, both may make a child; then each finds that of the other by the check, and takes its own away.
func Snapshot(ctx context.Context, path, name string, o SnapshotOptions) (r *SnapshotResult, err error) {
	o.Open.AnyParent = false
	for range snapshotTries {
		if r, err = snapshotOnce(ctx, path, name, o); !errors.Is(err, errOvertaken) {
			break
		}
	}
	return r, err
}

// snapshotTries is how often a snapshot begins again because the name of the image went to the child of another one.
const snapshotTries = 3

// errOvertaken is matched by the error for an image that lost its name while its snapshot waited for another one.
var errOvertaken = errors.New("another snapshot was made at the same time")

func snapshotOnce(ctx context.Context, path, name string, o SnapshotOptions) (_ *SnapshotResult, err error) {
	im, err := openSettled(path, o.Open)
	if err != nil {
		return nil, err
	}
	// Its lock keeps writers off until there is a child that says what it was.
	defer func() { err = errors.Join(err, im.Close()) }()
	f := im.current().file
	p, err := locationOf(f, path) // the directory of the file, not of a symbolic link, is where parent and child belong
	if err != nil {
		return nil, err
	}
	defer p.Close()
	image := p.path()
	switch {
	case (name == "" || o.KeepName) && f.IsDevice():
		return nil, optionsError{fmt.Errorf("%s is not a regular file; give a name for the child, and omit --keep-name", path)}
	case name == "":
		if own, err := p.mountedAlone(); err != nil {
			return nil, err
		} else if own {
			return nil, aloneError(image)
		}
		name = p.Join(p.freeName(o.KeepName))
	}
	s := &snapshot{ctx: ctx, image: image, place: p, o: o}
	release, err := s.begin()
	if err != nil {
		return nil, err
	}
	defer release()
	s.o.done("begin")
	if o.KeepName {
		return s.keepName(name)
	}
	if err := s.createAlone(name); err != nil {
		return nil, err
	}
	return &SnapshotResult{Frozen: image, Child: name}, nil
}

// aloneError says that nothing can be put beside an image that is a mount by itself.
func aloneError(image string) error {
	return optionsError{fmt.Errorf("%s is a mount of its own, such as in a container; a child in this directory would not be beside it", image)}
}

// openSettled opens an image for reading, after replaying its log, if there is one to replay. Where another host may still write
// it, it is opened for writing meanwhile, so that the other host cannot any more.
func openSettled(path string, o Options) (*Image, error) {
	o.Writable = false
	im, err := Open(path, o)
	if err != nil {
		return nil, err
	}
	held, err := im.heldElsewhere(o.Lock)
	if err != nil {
		return nil, errors.Join(err, im.Close())
	}
	if im.current().replay == nil && !held {
		return im, nil
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

// newName returns a name that is free for a new file beside the image base, named after it and the time.
func newName(base string, keepName bool, free func(string) bool) string {
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
		name := shortened(stem, maxName-len(end)) + end
		if i == 1000 || free(name) {
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
	place *location // of the image
	o     SnapshotOptions
}

// snapshotPatience is how long another snapshot of the image may take, and snapshotPause how often it is looked at.
const (
	snapshotPatience = 10 * time.Second
	snapshotPause    = 50 * time.Millisecond // at the most
)

// begin waits until no other snapshot of the image is being made, keeps others from being made until release is called, and
// checks that this one can be.
func (s *snapshot) begin() (release func(), err error) {
	f, err := imagefile.Open(s.image, 0)
	if err != nil {
		return nil, err
	}
	unlock := func() { _ = f.Close() }
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	waited := false
	for end := time.Now().Add(snapshotPatience); ; waited = true {
		if err = f.Lock(s.o.Open.Lock, imagefile.Renaming); !errors.Is(err, imagefile.ErrLocked) || time.Now().After(end) {
			break
		}
		select {
		case <-s.ctx.Done():
			return nil, errors.Join(context.Cause(s.ctx), err)
		case <-time.After(rand.N(snapshotPause)): // not the same for two that hold each other up
		}
	}
	if err != nil {
		return nil, err
	}
	if err := s.place.check(); err != nil {
		if waited {
			err = fmt.Errorf("%w: %w", errOvertaken, err)
		}
		return nil, err
	}
	if !imagefile.Same(f, s.place.file.File) {
		return nil, fmt.Errorf("%s is no longer the image: %w", s.image, errOvertaken)
	}
	return unlock, s.o.check("")
}

// createAlone makes a child of the image at path, unless another one was made meanwhile.
func (s *snapshot) createAlone(path string) error {
	made, err := s.create(path, s.image)
	if err != nil {
		return err
	}
	s.o.done("commit")
	if err = s.place.check(); err == nil {
		err = s.o.check(path)
	}
	if err == nil {
		return nil
	}
	d, name, rerr := safefile.Split(path)
	if rerr == nil {
		rerr = errors.Join(d.RemoveSame(name, made), d.Close())
	}
	return errors.Join(err, rerr)
}

// create makes a child of parent at path that the same people may use. It returns what file that is.
func (s *snapshot) create(path, parent string) (fs.FileInfo, error) {
	o := CreateOptions{Parent: parent, ParentPaths: s.o.ParentPaths, Open: s.o.Open}
	b, err := NewBuilder(s.ctx, path, o)
	if err != nil {
		return nil, err
	}
	if err = b.Finish(); err == nil && !s.place.file.IsDevice() {
		var a safefile.Access
		if a, err = safefile.AccessOf(s.place.file); err == nil {
			err = b.give(a)
		}
	}
	var made fs.FileInfo
	if err == nil {
		made, err = b.new.Stat()
	}
	if err != nil {
		return nil, errors.Join(err, b.Discard())
	}
	return made, b.Commit()
}

// keepName gives the image the new name, and its own to the child.
func (s *snapshot) keepName(frozen string) (*SnapshotResult, error) {
	name, err := s.place.beside(frozen)
	if err != nil {
		return nil, err
	}
	linked, err := s.place.link(name)
	if err != nil {
		return nil, err
	}
	s.o.done("link")
	if err := s.takeName(frozen); err != nil {
		// The new name goes only while the image has its own: not if the child has that, and was not made durable.
		if two, terr := s.place.twoNames(name); linked && two && terr == nil {
			err = errors.Join(err, s.place.Remove(name))
		}
		return nil, err
	}
	return &SnapshotResult{Frozen: frozen, Child: s.image}, nil
}

// A tempError names a child by the name that it was to get, not by the one that it had until then.
type tempError struct {
	err        error
	temp, name string
}

func (e *tempError) Error() string { return strings.ReplaceAll(e.err.Error(), e.temp, e.name) }
func (e *tempError) Unwrap() error { return e.err }

// takeName makes a child of the image under its new name, and puts it in the place of the old name.
func (s *snapshot) takeName(frozen string) error {
	temp := newfile.TempName(s.place.name)
	if _, err := s.create(s.place.Join(temp), frozen); err != nil {
		return &tempError{err, temp, s.place.name}
	}
	s.o.done("create")
	err := s.place.check()
	if err == nil {
		err = s.o.check(s.place.Join(temp))
	}
	if err == nil {
		err = s.place.Rename(temp, s.place.name)
	}
	if err != nil {
		return errors.Join(err, s.place.Remove(temp))
	}
	s.o.done("rename")
	return s.place.Sync()
}
