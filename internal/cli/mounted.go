package cli

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/processes"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// An image that this program has mounted for writing can still be looked at. Its file is read without locks, after
// its server has made it clean, and what was found counts if headers and log did not change meanwhile: the server changes
// other metadata only after it has logged the change.

// imageNamed returns the path of the image that a name stands for: itself, or that of the mount which is named by its
// mount point, its file or a device on it.
func imageNamed(name string) (string, error) {
	var m *active.Mount
	at, err := mounts.Locate(name)
	if err != nil {
		return name, nil // which opening it tells
	}
	if at.Mount != nil && at.Mount.FSType == mounts.Type {
		if m, err = active.Find(name); err != nil {
			return "", err
		}
	} else {
		st, err := os.Stat(name)
		if err != nil || st.Mode().IsRegular() {
			return name, nil
		}
		if m, err = active.Find(name); err != nil || m.ImageID == mounts.FileID(st) {
			return name, nil // a directory of images, or an image in a device
		}
	}
	switch {
	case m.State == active.Unknown:
		return "", fmt.Errorf("%s: %w", m.MountPoint, m.Reason)
	case m.State != active.Serving:
		return "", fmt.Errorf("%s: the mount of %s is %s", m.MountPoint, m.Image, m.State)
	}
	for _, path := range []string{m.Image, m.ImageNow, openBy(m)} {
		if st, err := os.Stat(path); err == nil && (m.ImageID == "" || mounts.FileID(st) == m.ImageID) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: the mounted image %s has no name here", m.MountPoint, m.Image)
}

// openBy returns a path to the image's file as its server has it open, for one that has no other name here. It is "" where
// there is none.
func openBy(m *active.Mount) string {
	path, _ := processes.Look(func() (string, bool) {
		for _, l := range processes.OpenFiles(m.PID) {
			if to, err := os.Readlink(l); err != nil || !strings.HasPrefix(to, m.Image) && to != m.ImageNow {
				continue
			}
			if st, err := os.Stat(l); err == nil && mounts.FileID(st) == m.ImageID {
				return l, true
			}
		}
		return "", false
	})
	return path
}

// imagesNamed is imageNamed for each of the names.
func imagesNamed(names []string) (paths []string, err error) {
	for _, name := range names {
		path, err := imageNamed(name)
		if err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// Reading an image beside its server is tried again for a while, where the server was writing.
const (
	besideTries = 8
	besideHold  = 1 // from this try on, changes wait meanwhile
	besidePause = 50 * time.Millisecond
)

// beside calls read, which reads the images at the paths with the given options and prints what it finds. Where one of them, or
// a parent, is mounted by this program for writing, read is called again without locks until it has met no change, and only
// what it prints then appears.
func beside(cmd *cobra.Command, o vhdx.Options, paths []string, read func(vhdx.Options) error) error {
	err := read(o)
	locked, ok := errors.AsType[*vhdx.LockedError](err)
	if !ok || o.Writable || o.Lock != "" && o.Lock != vhdx.LockOn && o.Lock != vhdx.LockLease {
		return err
	}
	served, serr := servedImages(locked, o, paths)
	if serr != nil {
		return explainLock(serr)
	}
	out := cmd.OutOrStdout()
	defer cmd.SetOut(out)
	o.Lock = vhdx.LockOff
	for try := range besideTries {
		time.Sleep(time.Duration(try) * besidePause)
		var releases []func()
		for _, m := range served {
			_ = mounts.Clean(m.MountPoint) // else it has a log, which is as good
			if try >= besideHold {
				releases = append(releases, mounts.Hold(m.MountPoint))
			}
		}
		var printed bytes.Buffer
		cmd.SetOut(&printed)
		before, berr := fingerprints(served)
		err = read(o)
		after, aerr := fingerprints(served)
		for _, release := range releases {
			release()
		}
		if berr == nil && aerr == nil && maps.Equal(before, after) {
			_, werr := out.Write(printed.Bytes())
			return errors.Join(err, werr)
		}
	}
	for path, m := range served {
		return fmt.Errorf("%s is mounted on %s and written all the time; try again when less is written", path, m.MountPoint)
	}
	return err
}

// servedImages returns the mounts of this program that keep the images at the paths from being read, by the paths of their
// images, of which locked is the first. The error is that of a program that is none of them.
func servedImages(locked *vhdx.LockedError, o vhdx.Options, paths []string) (map[string]*active.Mount, error) {
	all := []*vhdx.LockedError{locked}
	o.LateScan = true
	for _, path := range paths {
		im, err := vhdx.Open(path, o)
		if err == nil {
			_ = im.Close() // only read
		}
		if also, ok := errors.AsType[*vhdx.LockedError](err); ok {
			all = append(all, also)
		}
	}
	served := make(map[string]*active.Mount)
	for _, l := range all {
		if served[l.Path] != nil {
			continue
		}
		m := active.ServedBy(l.Holders)
		st, err := os.Stat(l.Path)
		if m == nil || err != nil || m.State != active.Serving || m.ImageID != mounts.FileID(st) {
			return nil, l
		}
		served[l.Path] = m
	}
	return served, nil
}

// fingerprints returns the fingerprint of each of the images.
func fingerprints(images map[string]*active.Mount) (map[string][sha256.Size]byte, error) {
	sums := make(map[string][sha256.Size]byte)
	for path := range images {
		sum, err := fingerprint(path)
		if err != nil {
			return nil, err
		}
		sums[path] = sum
	}
	return sums, nil
}

// headersEnd is where headers and region tables end, in bytes (MS-VHDX 2.2).
const headersEnd = 1 << 20

// fingerprint returns a checksum of the headers and the log of the image at path.
func fingerprint(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	im, err := vhdx.Open(path, vhdx.Options{Lock: vhdx.LockOff, Salvage: true})
	if err != nil {
		return sum, err
	}
	log := im.Info().Log
	if err := im.Close(); err != nil {
		return sum, err
	}
	h := sha256.New()
	for _, r := range []*io.SectionReader{io.NewSectionReader(f, 0, headersEnd), io.NewSectionReader(f, int64(log.Offset), int64(log.Length))} {
		if _, err := io.Copy(h, r); err != nil {
			return sum, err
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}
