package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// A workload is what is done with a disk.
type workload struct {
	name, unit string
	aim        aim
	image      imageKind
	caches     cacheState
	memory     bool     // the image lies in a tmpfs, so that no disk is measured
	args       []string // for fio
	once       bool     // the disk is read once, however long that takes: fio would empty the cache of disk.raw alone for the next time
	kept       bool     // fio does not empty the cache of the plain file, which is its image
	job        job      // instead of fio
	copies     bool     // instead of all that: the image becomes a raw file, and is not mounted
	shared     bool     // the image lies on a file system whose files can share space
	options    string   // for the mount of vhdxfs, besides those of all workloads
	without    string   // the contestant that cannot do it
}

// An aim is how many times as fast as qemu and go-fuse we want to be; 0 is nothing in particular.
type aim struct{ qemu, goFUSE float64 }

// An imageKind says what an image holds.
type imageKind string

const (
	fullImage   imageKind = "full"        // random bytes, in blocks of 32 MiB
	parentImage imageKind = "parent"      // the same, but no row writes to it: children do not fit a parent that has changed
	emptyImage  imageKind = "empty"       // nothing, in blocks of 1 MiB
	emptyLarge  imageKind = "empty large" // nothing, in blocks of 32 MiB
	sparseImage imageKind = "sparse"      // 1 MiB of each 64 MiB of a disk of 2 GiB, in blocks of 1 MiB
	chain10     imageKind = "10 layers"   // a full image below empty ones
	chain100    imageKind = "100 layers"  // the same
	partial100  imageKind = "100 partly"  // likewise, each with pages of 4 KiB of its own all over the disk: 100 of each 128
	hugeImage   imageKind = "huge"        // nothing, in blocks of 1 MiB: the largest disk there is
)

// A cacheState says what the kernel's caches hold.
type cacheState int

const (
	cold        cacheState = iota // nothing
	imageCached                   // the image
	diskCached                    // disk.raw, which was read before
)

var workloads = []workload{
	{name: "sequential read", aim: aim{2.3, 1.1}, unit: "MB/s", once: true, args: []string{"--rw=read", "--bs=1M"}},
	{name: "sequential read, again", aim: aim{5, 1.0}, unit: "MB/s", caches: diskCached, args: []string{"--rw=read", "--bs=1M", "--invalidate=0"}},
	{name: "sequential read, direct", aim: aim{1.3, 1.2}, unit: "MB/s", once: true, args: []string{"--rw=read", "--bs=1M", "--direct=1"}},
	{name: "sequential read of nothing", aim: aim{2.0, 1.5}, unit: "MB/s", image: emptyImage, args: []string{"--rw=read", "--bs=1M"}},
	{name: "random read", aim: aim{1.5, 1.2}, unit: "IOPS", args: []string{"--rw=randread", "--bs=4k"}},
	{name: "random read, cached", aim: aim{1.0, 1.8}, unit: "IOPS", caches: imageCached, args: []string{"--rw=randread", "--bs=4k", "--direct=1"}},
	{name: "random read, image in memory", aim: aim{1.0, 1.5}, unit: "IOPS", caches: imageCached, kept: true, args: []string{"--rw=randread", "--bs=4k"}},
	{name: "… image in memory, kernel=on", aim: aim{4, 4}, unit: "IOPS", caches: imageCached, kept: true, once: true, args: []string{"--rw=randread", "--bs=4k"}, options: "ro,kernel=on"},
	{name: "random read, kernel=on", unit: "IOPS", args: []string{"--rw=randread", "--bs=4k"}, options: "ro,kernel=on"},
	{name: "sequential read, kernel=on", unit: "MB/s", once: true, args: []string{"--rw=read", "--bs=1M"}, options: "ro,kernel=on"},
	{name: "random read, 10 layers", aim: aim{0, 1.5}, unit: "IOPS", image: chain10, args: []string{"--rw=randread", "--bs=4k"}, without: "qemu"},
	{name: "random read, 100 layers", aim: aim{0, 1.5}, unit: "IOPS", image: chain100, args: []string{"--rw=randread", "--bs=4k"}, without: "qemu"},
	{name: "… 100 layers with data, cached", aim: aim{0, 1}, unit: "IOPS", image: partial100, caches: diskCached, args: []string{"--rw=randread", "--bs=4k", "--direct=1"}, without: "qemu"},
	{name: "random read, 16 deep", aim: aim{2.0, 1.5}, unit: "IOPS", args: []string{"--rw=randread", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=16"}},
	{name: "random read, 4 jobs", aim: aim{2.0, 1.5}, unit: "IOPS", args: []string{"--rw=randread", "--bs=4k", "--direct=1", "--numjobs=4"}},
	{name: "sequential write", aim: aim{1.2, 1.1}, unit: "MB/s", caches: imageCached, args: []string{"--rw=write", "--bs=1M", "--end_fsync=1"}},
	{name: "sequential write, no disk", aim: aim{1.2, 1.1}, unit: "MB/s", memory: true, args: []string{"--rw=write", "--bs=1M", "--end_fsync=1"}},
	{name: "random write, direct", aim: aim{0.9, 1.5}, unit: "IOPS", caches: imageCached, args: []string{"--rw=randwrite", "--bs=4k", "--direct=1"}},
	{name: "random write, 16 deep", aim: aim{0, 1.5}, unit: "IOPS", caches: imageCached, args: []string{"--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=16"}},
	{name: "random write, buffered", unit: "IOPS", caches: imageCached, args: []string{"--rw=randwrite", "--bs=4k", "--end_fsync=1"}},
	{name: "random write, writeback_cache", aim: aim{8, 8}, unit: "IOPS", caches: imageCached, args: []string{"--rw=randwrite", "--bs=4k", "--end_fsync=1"}, options: "writeback_cache"},
	{name: "random write, each synced", aim: aim{1.1, 1.1}, unit: "IOPS", caches: imageCached, args: []string{"--rw=randwrite", "--bs=4k", "--fdatasync=1"}},
	{name: "… each synced, writeback_cache", unit: "IOPS", caches: imageCached, args: []string{"--rw=randwrite", "--bs=4k", "--fdatasync=1"}, options: "writeback_cache"},
	{name: "random, 70 % reads, 16 deep", aim: aim{1.7, 1.4}, unit: "IOPS", caches: imageCached, args: []string{"--rw=randrw", "--rwmixread=70", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=16"}},
	{name: "sequential write, new blocks", aim: aim{2.0, 1.0}, unit: "MB/s", image: emptyImage, args: []string{"--rw=write", "--bs=1M", "--end_fsync=1"}},
	{name: "… new blocks of 32 MiB", aim: aim{1.5, 1.0}, unit: "MB/s", image: emptyLarge, args: []string{"--rw=write", "--bs=1M", "--end_fsync=1"}},
	{name: "random write, new blocks", aim: aim{8, 1.1}, unit: "IOPS", image: emptyImage, args: []string{"--rw=randwrite", "--bs=4k", "--direct=1", "--end_fsync=1"}},
	{name: "open", aim: aim{1.5, 1.5}, unit: "1/s", job: openJob},
	{name: "open 64 TiB", aim: aim{10, 1.0}, unit: "1/s", image: hugeImage, job: openJob},
	{name: "copy of a sparse disk", aim: aim{20, 1.0}, unit: "MB/s", image: sparseImage, job: copyJob},
	{name: "3000 files on a loop device", aim: aim{1.4, 1.15}, unit: "1/s", image: emptyImage, job: filesJob(false)},
	{name: "3000 files, --direct-io=on", aim: aim{0, 1.2}, unit: "1/s", image: emptyImage, job: filesJob(true), without: "qemu"},
	{name: "image to raw file", aim: aim{1, 0}, unit: "MB/s", copies: true, without: "go-fuse"},
	{name: "image to raw file, XFS", aim: aim{20, 0}, unit: "MB/s", copies: true, shared: true, without: "go-fuse"},
}

// A measurement is what one run of fio comes to.
type measurement struct {
	rate float64       // in the unit of the workload
	cpu  time.Duration // of the server, for one read or write
}

// A bench is where and how measurements are made.
type bench struct {
	dir     string
	program string // vhdxfs
	memory  string // directory in a tmpfs
	shared  string // directory on an XFS
	size    int64  // of the disk, bytes
	seconds int
}

// measure runs a workload on a fresh mount.
func (b bench) measure(c contestant, w workload) (m measurement, err error) {
	if w.image == "" {
		w.image = fullImage
	}
	switch {
	case w.memory:
		b.dir = b.memory
	case w.shared:
		b.dir = b.shared
	}
	image, err := b.image(c, w.image)
	if err != nil {
		return m, err
	}
	if w.copies {
		m.rate, err = b.copyImage(c, image)
		return m, err
	}
	dir, err := os.MkdirTemp(b.dir, "mount-")
	if err != nil {
		return m, err
	}
	defer os.RemoveAll(dir)
	if err := b.caches(image, w.caches); err != nil {
		return m, err
	}
	began := time.Now()
	s, err := c.mount(image, dir, w.options)
	if err != nil {
		return m, err
	}
	s.began = began
	defer func() {
		if uerr := s.unmount(); err == nil {
			err = uerr
		}
	}()
	if w.caches == diskCached {
		if err := run("dd", "if="+s.disk, "of=/dev/null", "bs=1M"); err != nil {
			return m, err
		}
	}
	before, err := cpu(s.pid)
	if err != nil {
		return m, err
	}
	requests := int64(1)
	if w.job != nil {
		m.rate, err = w.job(b, s)
	} else {
		m.rate, requests, err = b.fio(s, w)
	}
	if err != nil {
		return m, err
	}
	after, err := cpu(s.pid)
	m.cpu = (after - before) / time.Duration(max(requests, 1))
	return m, err
}

// fio runs fio on the disk, and returns the rate and the number of reads and writes.
func (b bench) fio(s *mounted, w workload) (rate float64, requests int64, err error) {
	args := append([]string{"--name=bench", "--filename=" + s.disk, fmt.Sprintf("--size=%d", b.size),
		"--group_reporting", "--allow_file_create=0", "--output-format=json"}, w.args...)
	if !w.once {
		args = append(args, fmt.Sprintf("--runtime=%d", b.seconds), "--time_based")
	}
	if w.kept && s.pid == 0 {
		args = append(args, "--invalidate=0")
	}
	out, err := exec.Command("fio", args...).Output()
	if err != nil {
		return 0, 0, fmt.Errorf("fio: %w", err)
	}
	type sums struct {
		IOs  int64   `json:"total_ios"`
		IOPS float64 `json:"iops"`
		BW   float64 `json:"bw_bytes"`
	}
	var report struct{ Jobs []struct{ Read, Write sums } }
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 {
		return 0, 0, fmt.Errorf("the report of fio cannot be read: %v", err)
	}
	r, wr := report.Jobs[0].Read, report.Jobs[0].Write
	if w.unit == "MB/s" {
		return (r.BW + wr.BW) / 1e6, r.IOs + wr.IOs, nil
	}
	return r.IOPS + wr.IOPS, r.IOs + wr.IOs, nil
}

// caches leaves in the kernel's caches what is wanted there of an image that is not mounted.
func (b bench) caches(image string, state cacheState) error {
	unix.Sync()
	if err := dropCaches(); err != nil || state != imageCached {
		return err
	}
	return readPages(image)
}

func dropCaches() error {
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// readPages reads a file in such a way that the kernel keeps single pages of it. It would make large ones of what is read in
// order, and for each small write to those ext4 looks at all of their blocks, whoever writes: that would be measured then.
func readPages(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, mib))
	return err
}
