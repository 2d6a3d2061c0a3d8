package cli

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"

	"github.com/sirupsen/logrus"
)

// becomeUser makes the process one of the user whom setuid= names. It opens the image and mounts with no more
// rights than that user has, who mounts by fusermount3.
func (o *options) becomeUser() error {
	if o.user == "" {
		return nil
	}
	u, err := user.Lookup(o.user)
	if err != nil {
		u, err = user.LookupId(o.user)
	}
	if err != nil {
		return usageError("option setuid=%s: no such user", o.user)
	}
	uid, uerr := strconv.Atoi(u.Uid)
	gid, gerr := strconv.Atoi(u.Gid)
	ids, ierr := u.GroupIds()
	if err := errors.Join(uerr, gerr, ierr); err != nil {
		return fmt.Errorf("option setuid=%s: %w", o.user, err)
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
		return fmt.Errorf("option setuid= needs root (%s): %w", o.user, err)
	}
	if !o.allowAsked {
		o.mount.AllowOther = false // the default for root, which this is no longer
	}
	return nil
}

// writePIDFile writes the number of a process into the file that pidfile= names, "" for none.
func writePIDFile(path string, pid int) error {
	if path == "" {
		return nil
	}
	err := os.WriteFile(path, fmt.Appendln(nil, pid), 0o644)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT): // it is there, and empty
		err = errors.Join(err, os.Remove(path))
	}
	return fmt.Errorf("option pidfile: %w", err)
}

func removePIDFile(path string, log logrus.FieldLogger) {
	if path == "" {
		return
	}
	if err := os.Remove(path); err != nil {
		log.WithError(err).Warn("cannot remove the pidfile")
	}
}
