package cli

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/sirupsen/logrus"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

// becomeUser makes the process one of the user that setuid= names. It then opens the image and mounts, by fusermount3, with
// no more rights than that user has.
func becomeUser(o *mountoption.Options) error {
	if o.User == "" {
		return nil
	}
	u, err := user.Lookup(o.User)
	if err != nil {
		u, err = user.LookupId(o.User)
	}
	if err != nil {
		return usageError("option setuid=%s: no such user", o.User)
	}
	uid, uerr := strconv.Atoi(u.Uid)
	gid, gerr := strconv.Atoi(u.Gid)
	ids, ierr := u.GroupIds()
	if err := errors.Join(uerr, gerr, ierr); err != nil {
		return fmt.Errorf("option setuid=%s: %w", o.User, err)
	}
	if uid == os.Geteuid() {
		return nil
	}
	groups := make([]int, 0, len(ids))
	for _, id := range ids {
		if g, err := strconv.Atoi(id); err == nil {
			groups = append(groups, g)
		}
	}
	// Those of package syscall change every thread of the process.
	err = syscall.Setgroups(groups)
	if err == nil {
		err = syscall.Setgid(gid)
	}
	if err == nil {
		err = syscall.Setuid(uid)
	}
	if err != nil {
		return fmt.Errorf("option setuid= needs root (%s): %w", o.User, err)
	}
	if !o.AccessGiven {
		o.Mount.AllowOther = false // the default for root, which this is no longer
	}
	return nil
}

// A pidFile is the file that pidfile= names, and what it was when it was written.
type pidFile struct {
	path string
	info os.FileInfo
}

// writePIDFile writes the number of a process into the file at path. It is nil for "", which is none.
func writePIDFile(path string, pid int) (_ *pidFile, err error) {
	if path == "" {
		return nil, nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("option pidfile: %w", err)
		}
	}()
	d, name, err := safefile.Reach(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := d.OpenToWrite(name, path, 0, 0o644)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := f.Stat()
	if err == nil && info.Mode().IsRegular() {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintln(f, pid)
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) { // it is there, and empty
		err = errors.Join(err, d.RemoveFile(name, f))
	}
	return &pidFile{path, info}, err
}

// remove removes the file, unless another has its name by now.
func (p *pidFile) remove(log logrus.FieldLogger) {
	if p == nil {
		return
	}
	d, name, err := safefile.Reach(p.path)
	if err == nil {
		defer d.Close()
		err = d.RemoveSame(name, p.info)
	}
	if err != nil {
		log.WithError(err).Warn("cannot remove the pidfile")
	}
}
