package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A workload is what fio does with a disk.
type workload struct {
	name, unit string
	cold       bool // the kernel's caches are emptied first; else the image is read into them
	empty      bool // the image has no blocks yet; else all
	args       []string
}

var workloads = []workload{
	{name: "sequential read", unit: "MB/s", cold: true, args: []string{"--rw=read", "--bs=1M"}},
	{name: "sequential read, direct", unit: "MB/s", cold: true, args: []string{"--rw=read", "--bs=1M", "--direct=1"}},
	{name: "random read", unit: "IOPS", cold: true, args: []string{"--rw=randread", "--bs=4k"}},
	{name: "random read, cached", unit: "IOPS", args: []string{"--rw=randread", "--bs=4k", "--direct=1"}},
	{name: "random read, 16 deep", unit: "IOPS", cold: true, args: []string{"--rw=randread", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=16"}},
	{name: "random read, 4 jobs", unit: "IOPS", cold: true, args: []string{"--rw=randread", "--bs=4k", "--direct=1", "--numjobs=4"}},
	{name: "sequential write", unit: "MB/s", args: []string{"--rw=write", "--bs=1M", "--end_fsync=1"}},
	{name: "random write, direct", unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--direct=1"}},
	{name: "random write, buffered", unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--end_fsync=1"}},
	{name: "random write, each synced", unit: "IOPS", args: []string{"--rw=randwrite", "--bs=4k", "--fdatasync=1"}},
	{name: "sequential write, new blocks", unit: "MB/s", empty: true, args: []string{"--rw=write", "--bs=1M", "--end_fsync=1"}},
	{name: "random write, new blocks", unit: "IOPS", empty: true, args: []string{"--rw=randwrite", "--bs=4k", "--direct=1", "--end_fsync=1"}},
}

// A measurement is what one run of fio comes to.
type measurement struct {
	rate float64       // in the unit of the workload
	cpu  time.Duration // of the server, for one read or write
}

// A bench is where and how measurements are made.
type bench struct {
	dir     string
	size    int64 // of the disk, bytes
	seconds int
}

// measure runs a workload on a fresh mount.
func (b bench) measure(c contestant, w workload) (m measurement, err error) {
	image, err := b.image(c, w)
	if err != nil {
		return m, err
	}
	dir, err := os.MkdirTemp(b.dir, "mount-")
	if err != nil {
		return m, err
	}
	defer os.RemoveAll(dir)
	if err := b.caches(image, w.cold); err != nil {
		return m, err
	}
	s, err := c.mount(image, dir)
	if err != nil {
		return m, err
	}
	defer func() {
		if uerr := s.unmount(); err == nil {
			err = uerr
		}
	}()
	before, err := cpu(s.pid)
	if err != nil {
		return m, err
	}
	args := append([]string{"--name=bench", "--filename=" + s.disk, fmt.Sprintf("--size=%d", b.size),
		fmt.Sprintf("--runtime=%d", b.seconds), "--time_based", "--group_reporting", "--allow_file_create=0", "--output-format=json"}, w.args...)
	out, err := exec.Command("fio", args...).Output()
	if err != nil {
		return m, fmt.Errorf("fio: %w", err)
	}
	after, err := cpu(s.pid)
	if err != nil {
		return m, err
	}
	type sums struct {
		IOs  int64   `json:"total_ios"`
		IOPS float64 `json:"iops"`
		BW   float64 `json:"bw_bytes"`
	}
	var report struct{ Jobs []struct{ Read, Write sums } }
	if err := json.Unmarshal(out, &report); err != nil || len(report.Jobs) != 1 {
		return m, fmt.Errorf("the report of fio cannot be read: %v", err)
	}
	r, wr := report.Jobs[0].Read, report.Jobs[0].Write
	m.rate = r.IOPS + wr.IOPS
	if w.unit == "MB/s" {
		m.rate = (r.BW + wr.BW) / 1e6
	}
	m.cpu = (after - before) / time.Duration(max(r.IOs+wr.IOs, 1))
	return m, nil
}

// image returns an image that is as the workload wants it. The full one is made once for each format.
func (b bench) image(c contestant, w workload) (string, error) {
	name := filepath.Join(b.dir, "empty."+c.format)
	if !w.empty {
		name = filepath.Join(b.dir, "full."+c.format)
		if _, err := os.Stat(name); err == nil {
			return name, nil
		}
	}
	args := []string{"create", "-q", "-f", c.format, name, fmt.Sprint(b.size)}
	if w.empty && c.format == "vhdx" {
		args = append(args, "-o", "block_size=1M")
	}
	if !w.empty {
		raw := filepath.Join(b.dir, "random")
		if out, err := exec.Command("dd", "if=/dev/urandom", "of="+raw, "bs=1M", fmt.Sprint("count=", b.size>>20)).CombinedOutput(); err != nil {
			return "", fmt.Errorf("dd: %w\n%s", err, out)
		}
		defer os.Remove(raw)
		args = []string{"convert", "-f", "raw", "-O", c.format, raw, name}
	}
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("qemu-img: %w\n%s", err, out)
	}
	return name, nil
}

// caches leaves the image in the kernel's caches, or not.
func (b bench) caches(image string, cold bool) error {
	unix.Sync()
	if cold {
		return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
	}
	return exec.Command("dd", "if="+image, "of=/dev/null", "bs=1M").Run()
}
