package test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// What is discarded comes back to the file system below the image, by each of the ways that users have. With -long,
// each way meets each kind of image.
func TestDiscardGivesSpaceBack(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	requireTools(t, "blkdiscard")
	for i, tc := range []struct {
		name string
		args []string
	}{
		{"blkdiscard", []string{"blkdiscard", "--force"}},
		{"blkdiscard -z", []string{"blkdiscard", "--force", "--zeroout"}},
		{"part by part", []string{"blkdiscard", "--force", "--step", "4M"}},
	} {
		for _, v := range variants {
			if v.name == "fixed" || (v.sector == 4096) != (i == 1) && !*long {
				continue
			}
			t.Run(tc.name+"/"+v.name, func(t *testing.T) {
				const size = 64 * mib
				img := v.create(t, strconv.Itoa(size))
				s := serve(t, img, "-o", "commit=1")
				l := attachRW(t, s.disk, v.sector)
				must(t, "dd", "if=/dev/urandom", "of="+l.dev, "bs=1M", "count=40", "oflag=direct", "status=none")
				must(t, "sync", l.dev)
				full := used(t, img)
				if full < 40*mib {
					t.Fatalf("the image takes %d bytes, with 40 MiB written", full)
				}
				must(t, tc.args[0], append(tc.args[1:], l.dev)...)
				allZero(t, l.dev, 0, size)
				allZero(t, s.disk, 0, size)
				must(t, "sync", l.dev)
				eventually(t, "the image to shrink while it is mounted", func() bool { return used(t, img) < 8*mib })
				l.detach(t)
				s.end(t)
				checkClean(t, img)
				if got := stat(t, img).Size; got > 16*mib {
					t.Errorf("the image is %d bytes long, with nothing in it", got)
				}
				if b := info(t, img).Blocks; b["fully_present"]+b["partially_present"] != 0 {
					t.Errorf("there are still blocks: %v", b)
				}
				allZero(t, serve(t, img).disk, 0, size)
			})
		}
	}
}

// allZero fails the test unless the n bytes from off on read as zero, each of them read from the program and not
// from the kernel's cache.
func allZero(t *testing.T, path string, off, n int64) {
	t.Helper()
	f := openDisk(t, path, unix.O_DIRECT)
	defer f.Close()
	for b := aligned(t, mib); n > 0; off, n = off+mib, n-mib {
		m, err := f.ReadAt(b[:min(n, mib)], off)
		if err != nil {
			t.Fatalf("read %s at %d: %v", path, off, err)
		}
		if !zero(b[:m]) {
			t.Fatalf("%s: not all of the %d bytes at %d are zero", path, m, off)
		}
	}
}

// A file system's own trim, after files were removed.
func TestFstrimGivesSpaceBack(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	requireLoop(t)
	requireFileSystem(t, "ext4")
	img := create(t, "200MiB", "--block-size", "1MiB")
	s := serve(t, img, "-o", "commit=1")
	l := attachRW(t, s.disk, 512)
	mkfs(t, "ext4", l.dev)
	inside := mountWritable(t, l.dev, "ext4")
	must(t, "dd", "if=/dev/urandom", "of="+filepath.Join(inside, "large"), "bs=1M", "count=80", "conv=fsync", "status=none")
	must(t, "dd", "if=/dev/urandom", "of="+filepath.Join(inside, "kept"), "bs=1M", "count=5", "conv=fsync", "status=none")
	want, full := sha256File(t, filepath.Join(inside, "kept")), used(t, img)
	must(t, "rm", filepath.Join(inside, "large"))
	must(t, "sync", "--file-system", inside)
	must(t, "fstrim", inside)
	must(t, "sync", "--file-system", inside)
	eventually(t, "the image to shrink", func() bool { return used(t, img) < full-60*mib })
	unmount(t, inside)
	l.detach(t)
	s.end(t)
	checkClean(t, img)
	s = serve(t, img)
	inside = mountInside(t, attachRW(t, s.disk, 512).dev, "ext4")
	if got := sha256File(t, filepath.Join(inside, "kept")); got != want {
		t.Errorf("the file that was kept has digest %s, want %s", got, want)
	}
}

// A hole is a promise of zeros, whatever part of a block it takes, over data here, over a parent's, and over none.
func TestHolesReadAsZeros(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	const size = 24 * mib
	for _, v := range variants {
		for _, discard := range []string{"auto", "unmap"} {
			t.Run(v.name+"/"+discard, func(t *testing.T) {
				img := v.create(t, strconv.Itoa(size))
				s := serve(t, img, "-o", "discard="+discard)
				f := openDisk(t, s.disk, 0)
				rng := rand.New(rand.NewPCG(24, 0))
				writePattern(t, f, 0xC3, 0, size/2)
				want := readAt(t, s.disk, 0, size)
				if rest := want[size/2:]; v.child && (bytes.Count(rest, []byte{0}) < mib || bytes.Count(rest, []byte{0xA5}) < mib) {
					t.Fatal("there have to be data and zeros of the parent to be seen")
				}
				d := openDisk(t, s.disk, unix.O_DIRECT)
				buf := aligned(t, size)
				for i := range 60 {
					off, n := rng.Int64N(size), 1+rng.Int64N(1<<(1+rng.IntN(20)))
					switch i % 4 {
					case 0: // a whole block, of either size
						off, n = off/(2*mib)*2*mib, 2*mib
					case 1: // sectors
						off, n = off/v.sector*v.sector, (n/v.sector+1)*v.sector
					}
					n = min(n, size-off)
					if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
						t.Fatalf("punch %d at %d: %v", n, off, err)
					}
					clear(want[off : off+n])
					// The hole with what lies around it, as the program has it and not the kernel's cache.
					begin, end := max(0, off/4096-1)*4096, min(size, (off+n)/4096*4096+2*4096)
					got := buf[:end-begin]
					if _, err := d.ReadAt(got, begin); err != nil {
						t.Fatal(err)
					}
					if d := difference(got, want[begin:end]); d >= 0 {
						t.Fatalf("after a punch of %d at %d, byte %d is %#02x, want %#02x", n, off, begin+int64(d), got[d], want[begin+int64(d)])
					}
					if i%4 == 3 { // write where holes are, too, so that space is used again
						off = rng.Int64N(size/2/4096) * 4096
						writePattern(t, f, byte(i), off, 3*mib)
						copy(want[off:], bytes.Repeat([]byte{byte(i)}, 3*mib))
						if err := f.Sync(); err != nil {
							t.Fatal(err)
						}
					}
				}
				if _, err := d.ReadAt(buf, 0); err != nil {
					t.Fatal(err)
				}
				if d := difference(buf, want); d >= 0 {
					t.Errorf("byte %d is %#02x, want %#02x", d, buf[d], want[d])
				}
				if bytes.Count(want, []byte{0}) > size*3/4 {
					t.Errorf("nearly all has become zero, so this shows little")
				}
				f.Close()
				d.Close()
				s.end(t)
				checkClean(t, img)
				sameStart(t, serve(t, img).disk, want)
			})
		}
	}
}

func TestDiscardOff(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img, raw := sampleImage(t)
	s := serve(t, img, "-o", "discard=off")
	f := openDisk(t, s.disk, 0)
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, mib); err != unix.EOPNOTSUPP {
		t.Errorf("punch: %v, want EOPNOTSUPP", err)
	}
	sameContent(t, s.disk, raw)
}

// A loop device that is detached only closes disk.raw. An image copied after that is clean and complete, though it is
// still mounted and no timer runs.
func TestDetachMakesTheImageClean(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			img := v.create(t, "32MiB")
			s := serve(t, img, "-o", "commit=0,idle_clean=0")
			l := attachRW(t, s.disk, v.sector)
			rng := rand.New(rand.NewPCG(64, 0))
			f := openDisk(t, l.dev, 0)
			for range 12 { // buffered, and nobody syncs
				writePattern(t, f, byte(1+rng.IntN(255)), rng.Int64N(30*mib), 1+rng.Int64N(2*mib))
			}
			f.Close() // the last close of a device writes what is buffered
			l.detach(t)
			want := readAt(t, s.disk, 0, 32*mib)

			copied := filepath.Join(filepath.Dir(img), "copy.vhdx")
			eventually(t, "a copy that is clean and complete", func() bool {
				must(t, "cp", "--sparse=always", img, copied)
				if info(t, copied).Log.State != "clean" {
					return false
				}
				c := readOnly(t, copied)
				defer c.end(t)
				return bytes.Equal(readAt(t, c.disk, 0, len(want)), want)
			})
			checkClean(t, copied)
			s.end(t)
			sameStart(t, readOnly(t, img).disk, want)
		})
	}
}

// Closing disk.raw ends with a clean image as well, and the next change makes another disk of it.
func TestCloseMakesTheImageClean(t *testing.T) {
	t.Parallel()
	img := create(t, "16MiB", "--block-size", "1MiB")
	s := serve(t, img, "-o", "commit=0,idle_clean=0")
	guids := map[string]bool{}
	for i := range 3 {
		f := openDisk(t, s.disk, 0)
		writePattern(t, f, byte(i+1), int64(i)*3*mib, mib)
		f.Close()
		copied := filepath.Join(filepath.Dir(img), fmt.Sprintf("copy %d.vhdx", i))
		eventually(t, "a clean copy", func() bool {
			must(t, "cp", "--sparse=always", img, copied)
			in := info(t, copied)
			return in.Log.State == "clean" && in.Blocks["fully_present"] == int64(i+1)
		})
		in := info(t, copied)
		guids[in.Headers[in.CurrentHeader-1].DataWriteGUID] = true
	}
	if len(guids) != 3 {
		t.Errorf("three states of the disk have %d DataWriteGuids", len(guids))
	}
}
