package test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

var seed = flag.Uint64("seed", 1, "of the random operations through the mount")

// A seeded sequence of all that can be done to disk.raw through the kernel, in all the ways of doing it, against a
// slice of bytes. With -long, the sequence is longer; -seed chooses another.
func TestRandomOperations(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			ops := 600
			if *long {
				ops = 20000
			}
			r := newRandomDisk(t, v)
			for i := range ops {
				what, err := r.step()
				if err != nil {
					t.Fatalf("operation %d with seed %d, %s: %v", i, *seed, what, err)
				}
			}
			r.remount()
		})
	}
}

// A randomDisk is a mounted disk, its disk.raw open in several ways, and what it must read as.
type randomDisk struct {
	t       *testing.T
	v       variant
	options []string // of the mounts
	img     string
	rng     *rand.Rand
	want    []byte
	s       *served
	plain   *os.File // buffered
	dir     *os.File // O_DIRECT
	sync    *os.File // O_DSYNC
	mem     []byte   // mapped
	buf     []byte   // aligned
}

func newRandomDisk(t *testing.T, v variant, options ...string) *randomDisk {
	const size = 12*mib + 3*4096
	r := &randomDisk{t: t, v: v, options: options, img: v.create(t, fmt.Sprint(size)), rng: rand.New(rand.NewPCG(*seed, 12)), buf: aligned(t, 3*mib)}
	r.mount()
	r.want = readAt(t, r.s.disk, 0, size) // a parent's data
	r.open()
	return r
}

func (r *randomDisk) mount() {
	r.t.Helper()
	r.s = serve(r.t, r.img, r.options...)
	r.t.Cleanup(r.close) // comes before the unmount
}

// open opens disk.raw in all the ways.
func (r *randomDisk) open() {
	r.t.Helper()
	r.plain = openDisk(r.t, r.s.disk, 0)
	r.dir = openDisk(r.t, r.s.disk, unix.O_DIRECT)
	r.sync = openDisk(r.t, r.s.disk, unix.O_DSYNC)
	var err error
	r.mem, err = unix.Mmap(int(r.plain.Fd()), 0, len(r.want), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *randomDisk) close() {
	if r.mem != nil {
		unix.Munmap(r.mem)
		r.mem = nil
	}
	for _, f := range []*os.File{r.plain, r.dir, r.sync} {
		f.Close() // a nil one, too
	}
}

// remount unmounts, checks the image, mounts it anew and compares everything.
func (r *randomDisk) remount() {
	r.t.Helper()
	r.close()
	r.s.end(r.t)
	checkClean(r.t, r.img)
	r.mount()
	got := readAt(r.t, r.s.disk, 0, len(r.want))
	if d := difference(got, r.want); d >= 0 {
		r.t.Fatalf("mounted again: byte %d is %#02x, want %#02x", d, got[d], r.want[d])
	}
	r.open()
}

// extent returns a random range: small or large, at any byte or at multiples of unit.
func (r *randomDisk) extent(unit int) (off, n int) {
	n = 1 + r.rng.IntN(1<<(1+r.rng.IntN(21)))
	off = r.rng.IntN(len(r.want))
	if r.rng.IntN(5) == 0 { // at the border of a block
		off = off / mib * mib
		n = (n + mib - 1) / mib * mib
	}
	if unit > 1 {
		off, n = off/unit*unit, (n+unit-1)/unit*unit
	}
	return off, min(n, len(r.want)-off, len(r.buf))
}

// contents returns n bytes to write: random ones or, now and then, zeros.
func (r *randomDisk) contents(n int) []byte {
	b := r.buf[:n]
	if r.rng.IntN(8) == 0 {
		clear(b)
		return b
	}
	word := r.rng.Uint64() | 1
	for i := range b {
		word = word*6364136223846793005 + 1442695040888963407
		b[i] = byte(word >> 56)
	}
	return b
}

// step does one thing and says what it was.
func (r *randomDisk) step() (string, error) {
	const direct = 4096 // what O_DIRECT is aligned to here
	switch p := r.rng.IntN(1000); {
	case p < 200:
		off, n := r.extent(1)
		return fmt.Sprintf("write %d at %d", n, off), r.write(r.plain, r.contents(n), off)
	case p < 300:
		off, n := r.extent(direct)
		return fmt.Sprintf("direct write %d at %d", n, off), r.write(r.dir, r.contents(n), off)
	case p < 330:
		off, n := r.extent(1)
		return fmt.Sprintf("synchronous write %d at %d", n, off), r.write(r.sync, r.contents(n), off)
	case p < 430:
		off, n := r.extent(1)
		n = min(n, 64<<10)
		b := r.contents(n)
		copy(r.mem[off:], b)
		copy(r.want[off:], b)
		return fmt.Sprintf("mapped write %d at %d", n, off), nil
	case p < 450:
		return "msync", unix.Msync(r.mem, unix.MS_SYNC)
	case p < 550:
		off, n := r.extent(1)
		return fmt.Sprintf("punch %d at %d", n, off), r.zero(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	case p < 600:
		off, n := r.extent(1)
		return fmt.Sprintf("zero %d at %d", n, off), r.zero(unix.FALLOC_FL_ZERO_RANGE, off, n)
	case p < 620:
		off, n := r.extent(1)
		return fmt.Sprintf("zero, keeping the size, %d at %d", n, off),
			r.zero(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	case p < 650:
		off, n := r.extent(1)
		return fmt.Sprintf("allocate %d at %d", n, off), unix.Fallocate(int(r.plain.Fd()), 0, int64(off), int64(n))
	case p < 780:
		off, n := r.extent(1)
		return fmt.Sprintf("read %d at %d", n, off), r.read(r.plain, off, n)
	case p < 860:
		off, n := r.extent(direct)
		return fmt.Sprintf("direct read %d at %d", n, off), r.read(r.dir, off, n)
	case p < 930:
		off, n := r.extent(1)
		return fmt.Sprintf("mapped read %d at %d", n, off), r.compare(r.mem[off:off+n], off)
	case p < 965:
		return "fsync", r.plain.Sync()
	case p < 975:
		return "syncfs", unix.Syncfs(int(r.plain.Fd()))
	case p < 992:
		r.close()
		r.open()
		return "close and open", nil
	default:
		r.remount()
		return "mount anew", nil
	}
}

func (r *randomDisk) write(f *os.File, b []byte, off int) error {
	n, err := f.WriteAt(b, int64(off))
	if err == nil && n != len(b) {
		return fmt.Errorf("%d bytes were written", n)
	}
	copy(r.want[off:], b)
	return err
}

func (r *randomDisk) zero(mode uint32, off, n int) error {
	clear(r.want[off : off+n])
	return unix.Fallocate(int(r.plain.Fd()), mode, int64(off), int64(n))
}

func (r *randomDisk) read(f *os.File, off, n int) error {
	got, err := f.ReadAt(r.buf[:n], int64(off))
	if err != nil {
		return fmt.Errorf("%d bytes, %w", got, err)
	}
	return r.compare(r.buf[:n], off)
}

func (r *randomDisk) compare(got []byte, off int) error {
	if d := difference(got, r.want[off:off+len(got)]); d >= 0 {
		return fmt.Errorf("byte %d is %#02x, want %#02x", off+d, got[d], r.want[off+d])
	}
	return nil
}

func TestWritesBeyondTheEnd(t *testing.T) {
	t.Parallel()
	const size = 5*mib + 512
	img := create(t, fmt.Sprint(size), "--block-size", "1MiB")
	s := serve(t, img)
	f := openDisk(t, s.disk, 0)
	b := bytes.Repeat([]byte{7}, 1024)
	if n, err := unix.Pwrite(int(f.Fd()), b, size-512); n != 512 || err != nil {
		t.Errorf("write across the end: %d, %v; want a short write of 512 bytes", n, err)
	}
	for _, off := range []int64{size, size + 1, 1 << 40} {
		if n, err := unix.Pwrite(int(f.Fd()), b, off); !errors.Is(err, unix.EFBIG) {
			t.Errorf("write at %d: %d, %v; want EFBIG", off, n, err)
		}
	}
	if err := unix.Fallocate(int(f.Fd()), 0, size-512, 1024); !errors.Is(err, unix.EFBIG) {
		t.Errorf("fallocate across the end: %v, want EFBIG", err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, size, mib); err != nil {
		t.Errorf("punch beyond the end: %v", err)
	}
	for _, to := range []int64{0, size - 512} {
		if err := f.Truncate(to); !errors.Is(err, unix.EPERM) {
			t.Errorf("truncate to %d: %v, want EPERM", to, err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Errorf("truncate to the size that it has: %v", err)
	}
	if got := sizeOf(t, f); got != size {
		t.Errorf("the disk has %d bytes now", got)
	}
	got := readAt(t, s.disk, size-512, 512)
	if !bytes.Equal(got, b[:512]) {
		t.Error("the end of the disk does not hold what was written")
	}
	f.Close()
	s.end(t)
	checkClean(t, img)
}
