package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// farm mounts many children of one parent in the background, as a host of desktops does, and prints what each costs, and how fast
// all of them are together, next to one.
func (b bench) farm(w io.Writer, c contestant, children int) (err error) {
	parent, err := b.image(c, fullImage)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(b.dir, "farm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := b.caches(parent, cold); err != nil {
		return err
	}
	var points, disks []string
	defer func() {
		for _, p := range points {
			err = errors.Join(err, run("umount", p))
		}
	}()
	before, err := cachedBytes(parent)
	if err != nil {
		return err
	}
	var times []time.Duration
	for i := range children {
		image, point := filepath.Join(dir, fmt.Sprintf("%d.vhdx", i)), filepath.Join(dir, strconv.Itoa(i))
		if err := run(b.program, "create", "--parent", parent, image); err != nil {
			return err
		}
		if err := os.Mkdir(point, 0o700); err != nil {
			return err
		}
		began := time.Now()
		if err := run(b.program, "-o", "rw,idle_clean=1,parent_dir="+b.dir, image, point); err != nil {
			return err
		}
		times = append(times, time.Since(began))
		points, disks = append(points, point), append(disks, filepath.Join(point, "disk.raw"))
	}
	first, last := median(times[:max(children/4, 1)]), median(times[children-max(children/4, 1):])
	one, err := b.readRandom(disks[:1])
	if err != nil {
		return err
	}
	begin, err := b.readRandom(disks) // which starts threads in each mount
	if err != nil {
		return err
	}
	all, err := b.readRandom(disks)
	if err != nil {
		return err
	}
	after, err := cachedBytes(parent)
	if err != nil {
		return err
	}
	time.Sleep(2 * time.Second) // until they are clean
	memory, err := memoryOf(b.program)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "\n| %d children of one parent | |\n|---|---|\n", children)
	fmt.Fprintf(w, "| time of a mount: of the first quarter, of the last | %d, %d ms |\n", first.Milliseconds(), last.Milliseconds())
	fmt.Fprintf(w, "| memory of a mount, both processes | %.1f MiB |\n", float64(memory)/float64(children)/mib)
	fmt.Fprintf(w, "| page cache of the parent before, after reading; its size | %d, %d; %d MiB |\n", before/mib, after/mib, b.size/mib)
	fmt.Fprintf(w, "| 4 KiB at random from 8 threads, IOPS: one child, all children at first, and again | %.0f, %.0f, %.0f: %.2f |\n", one, begin, all, all/one)
	return nil
}

// readRandom reads pages of the disks at random, with O_DIRECT, from eight threads, and returns how many it has read in a second.
func (b bench) readRandom(disks []string) (iops float64, err error) {
	const threads, page = 8, 4 << 10
	var files []*os.File
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, d := range disks {
		f, err := os.OpenFile(d, os.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			return 0, err
		}
		files = append(files, f)
	}
	var (
		n     atomic.Int64
		wait  sync.WaitGroup
		errs  = make([]error, threads)
		began = time.Now()
		end   = began.Add(time.Duration(b.seconds) * time.Second)
	)
	for i := range threads {
		wait.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(len(disks))))
			room := make([]byte, 2*page)
			p := room[-uintptr(unsafe.Pointer(&room[0]))%page:][:page]
			for time.Now().Before(end) && errs[i] == nil {
				_, errs[i] = files[rng.IntN(len(files))].ReadAt(p, rng.Int64N(b.size/page)*page)
				n.Add(1)
			}
		})
	}
	wait.Wait()
	return float64(n.Load()) / time.Since(began).Seconds(), errors.Join(errs...)
}

// memoryOf returns the memory of all processes of a program, in bytes; what they share counts in parts.
func memoryOf(program string) (total int64, err error) {
	pids, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return 0, err
	}
	for _, exe := range pids {
		if path, err := os.Readlink(exe); err != nil || path != program {
			continue
		}
		rollup, err := os.ReadFile(filepath.Join(filepath.Dir(exe), "smaps_rollup"))
		if err != nil {
			continue // it has ended
		}
		for line := range bytes.Lines(rollup) {
			if kib, ok := strings.CutPrefix(string(line), "Pss:"); ok {
				n, err := strconv.ParseInt(strings.Fields(kib)[0], 10, 64)
				if err != nil {
					return 0, err
				}
				total += n << 10
			}
		}
	}
	return total, nil
}

// cachedBytes returns how much of a file is in the page cache.
func cachedBytes(path string) (int64, error) {
	out, err := exec.Command("fincore", "--bytes", "--noheadings", "--output", "RES", path).Output()
	if err != nil {
		return 0, fmt.Errorf("fincore: %w", err)
	}
	return strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
}
