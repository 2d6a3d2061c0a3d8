package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A job is something that is done once with a disk that has just been mounted. It returns how much of it is done in a
// second.
type job func(b bench, s *mounted) (rate float64, err error)

// openJob measures from the start of the mount to the first bytes that are read.
func openJob(_ bench, s *mounted) (float64, error) {
	f, err := os.Open(s.disk)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := io.ReadFull(f, make([]byte, 4096)); err != nil {
		return 0, err
	}
	return 1 / time.Since(s.began).Seconds(), nil
}

// copyJob copies the disk and leaves out its holes.
func copyJob(b bench, s *mounted) (float64, error) {
	to := filepath.Join(b.dir, "copy")
	defer os.Remove(to)
	began := time.Now()
	if err := run("cp", "--sparse=always", s.disk, to); err != nil {
		return 0, err
	}
	return sparseSize / 1e6 / time.Since(began).Seconds(), nil
}

// copyImage makes a raw file of an image, durably.
func (b bench) copyImage(c contestant, image string) (float64, error) {
	to := filepath.Join(b.dir, "copy")
	if err := b.caches(image, cold); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := run(c.convert[0], append(c.convert[1:len(c.convert):len(c.convert)], image, to)...); err != nil {
		return 0, err
	}
	if err := run("sync", to); err != nil {
		return 0, err
	}
	rate := float64(b.size) / 1e6 / time.Since(began).Seconds()
	return rate, os.Remove(to)
}

// filesJob makes a file system on a loop device on the disk, and many files in it, as a person would. The device goes
// through the page cache of disk.raw, or, if it is direct, past it.
func filesJob(direct bool) job {
	return func(b bench, s *mounted) (float64, error) {
		args := []string{"--find", "--show", s.disk}
		if direct {
			args = append(args, "--direct-io=on")
		}
		return b.files(args)
	}
}

// files does the work of filesJob on the device that losetup makes.
func (b bench) files(losetup []string) (_ float64, err error) {
	const files = 3000
	began := time.Now()
	out, err := exec.Command("losetup", losetup...).Output()
	if err != nil {
		return 0, fmt.Errorf("losetup: %w", err)
	}
	device := strings.TrimSpace(string(out))
	defer func() { err = errors.Join(err, run("losetup", "-d", device)) }()
	if err := run("mkfs.ext4", "-q", device); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp(b.dir, "files-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(dir)
	if err := run("mount", device, dir); err != nil {
		return 0, err
	}
	rng := rand.NewChaCha8([32]byte{})
	data := make([]byte, 48<<10)
	rng.Read(data)
	for i := range files {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), data[:rng.Uint64()%uint64(len(data))], 0o600); err != nil {
			return 0, errors.Join(err, run("umount", dir))
		}
	}
	if err := run("umount", dir); err != nil { // which syncs
		return 0, err
	}
	return files / time.Since(began).Seconds(), nil
}
