package test

import (
	"fmt"
	"testing"
)

// fioJobs are what all runs of fio have in common: eight jobs, each in a part of the disk of its own, which write
// blocks of mixed sizes and verify each by its checksum.
func fioJobs(file string, verifyOnly bool, more ...string) []string {
	size := 2 // MiB, of a job
	if *long {
		size = 64
	}
	args := []string{
		"--name=verify", "--filename=" + file, "--numjobs=8", "--group_reporting",
		fmt.Sprintf("--size=%dM", size), fmt.Sprintf("--offset_increment=%dM", size+1),
		"--verify=crc32c", "--verify_fatal=1", "--randseed=8", "--allow_file_create=0",
		// fio's default shared memory is a file that a crash leaves behind.
		"--thread", "--aux-path=" + root,
	}
	if verifyOnly {
		args = append(args, "--verify_only")
	}
	return append(args, more...)
}

// A checksum that fio wrote is right in the same mount and in a new one, however it was written. With -long, the
// parts of the disk are larger.
func TestFioVerifies(t *testing.T) {
	detectRaces(t)
	t.Parallel()
	requireTools(t, "fio")
	for _, tc := range []struct {
		name, variant string
		args          []string
	}{
		{"libaio, direct", "dynamic", []string{"--ioengine=libaio", "--direct=1", "--iodepth=8", "--rw=randwrite", "--bsrange=512-256k"}},
		{"libaio, direct, 4096", "dynamic 4096", []string{"--ioengine=libaio", "--direct=1", "--iodepth=8", "--rw=randwrite", "--bsrange=4k-256k"}},
		{"libaio, direct, differencing", "differencing", []string{"--ioengine=libaio", "--direct=1", "--iodepth=8", "--rw=randwrite", "--bsrange=512-256k", "--fsync=64"}},
		// This engine of fio 3.33 maps the beginning of the file, wherever a job's part lies: one job, at the beginning.
		{"mmap", "dynamic", []string{"--ioengine=mmap", "--rw=randwrite", "--bsrange=512-256k", "--numjobs=1", "--size=8M"}},
		{"mmap, differencing", "differencing", []string{"--ioengine=mmap", "--rw=randwrite", "--bsrange=512-256k", "--numjobs=1", "--size=8M"}},
		{"buffered", "dynamic", []string{"--ioengine=psync", "--rw=randwrite", "--bsrange=512-256k", "--fsync=100"}},
		{"buffered, odd sizes, 4096", "dynamic 4096", []string{"--ioengine=psync", "--rw=randwrite", "--bsrange=512-256k", "--bs_unaligned"}},
		{"buffered, fixed", "fixed", []string{"--ioengine=psync", "--rw=write", "--bsrange=512-256k", "--fdatasync=100"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := variantNamed(t, tc.variant)
			img := v.create(t, fioDisk())
			s := serve(t, img)
			must(t, "fio", fioJobs(s.disk, false, tc.args...)...)
			s.end(t)
			checkClean(t, img)
			s = serve(t, img)
			must(t, "fio", fioJobs(s.disk, true, tc.args...)...)
		})
	}
}

// Each block is trimmed, then written: what the trims gave up is used again at once.
func TestFioTrims(t *testing.T) {
	detectRaces(t)
	t.Parallel()
	requireTools(t, "fio")
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			requireLoop(t)
			img := v.create(t, fioDisk())
			s := serve(t, img)
			l := attachRW(t, s.disk, v.sector)
			args := []string{"--ioengine=libaio", "--direct=1", "--iodepth=8", fmt.Sprintf("--bsrange=%d-2M", v.sector)}
			for _, kind := range []string{"--rw=randtrimwrite", "--rw=trimwrite"} {
				must(t, "fio", fioJobs(l.dev, false, append(args, kind)...)...)
			}
			l.detach(t)
			s.end(t)
			checkClean(t, img)
			// They wrote the same blocks in the end, each with its checksum.
			s = serve(t, img)
			must(t, "fio", fioJobs(s.disk, true, append(args, "--rw=trimwrite")...)...)
		})
	}
}

// fioDisk is the size of a disk with room for fio's jobs.
func fioDisk() string {
	if *long {
		return "560MiB"
	}
	return "48MiB"
}
