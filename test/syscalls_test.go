package test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A request costs the program a known number of system calls: one takes it from the kernel, one is for the image file,
// and one brings the answer back. That is so with locks and without; and with a lease, which reads the headers once in a while and
// by no request.
func TestSystemCallsPerRequest(t *testing.T) {
	for _, mode := range []string{"", "off", "lease"} {
		name, options := "as usual", "commit=0,idle_clean=0,direct_io"
		if mode != "" {
			name, options = "lock="+mode, options+",lock="+mode
		}
		t.Run(name, func(t *testing.T) { countSystemCalls(t, options) })
	}
}

func countSystemCalls(t *testing.T, options string) {
	const (
		requests, size = 500, 4096
		slack          = 50 // in all: threads begin to read from the device and go on to wait, a lease reads the headers
	)
	img := create(t, "64MiB", "--block-size", "1MiB")
	s := serve(t, img, "-o", options)
	f := openDisk(t, s.disk, unix.O_DIRECT)
	b := aligned(t, size)
	for i := range b {
		b[i] = byte(i) + 1
	}
	each := func(do func(off int64) (int, error)) func(*testing.T) {
		return func(t *testing.T) {
			for i := range int64(requests) {
				if _, err := do(i * size); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	write := each(func(off int64) (int, error) { return f.WriteAt(b, off) })
	write(t) // new blocks, and the first change
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		do   func(*testing.T)
		in   int64 // reads of any kind, for each request
		out  int64 // writes
	}{
		{"read from the page cache", each(func(off int64) (int, error) { return f.ReadAt(b, off) }), 2, 1},
		{"read zeros", each(func(off int64) (int, error) { return f.ReadAt(b, 32*mib+off) }), 1, 1},
		{"overwrite", write, 1, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in, out := s.systemCalls(t)
			tc.do(t)
			in2, out2 := s.systemCalls(t)
			in, out = in2-in, out2-out
			t.Logf("%d requests: %d reads, %d writes", requests, in, out)
			if in < requests || in > tc.in*requests+slack {
				t.Errorf("%d requests took %d system calls that read, want %d each", requests, in, tc.in)
			}
			if out < requests || out > tc.out*requests+slack {
				t.Errorf("%d requests took %d system calls that write, want %d each", requests, out, tc.out)
			}
		})
	}
}

// systemCalls returns how many system calls the program has made so far that read and that write.
func (s *served) systemCalls(t *testing.T) (in, out int64) {
	t.Helper()
	path := fmt.Sprintf("/proc/%d/io", s.cmd.Process.Pid)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Skipf("the kernel does not count system calls: %v", err)
	}
	for line := range strings.Lines(string(text)) {
		fmt.Sscanf(line, "syscr: %d", &in)
		fmt.Sscanf(line, "syscw: %d", &out)
	}
	if in == 0 {
		t.Skipf("%s: %q", path, text)
	}
	return in, out
}
