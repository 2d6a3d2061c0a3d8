package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// QEMU and we write to one image in turn, again and again, to BAT entries at the borders of pages and chunks above
// all. Each reads what the other wrote. With -long, there are more rounds.
func TestWriteInTurnWithQemu(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "qemu-img", "qemu-io")
	rounds := 7
	if *long {
		rounds = 100
	}
	for _, tc := range []struct {
		name  string
		block int64
		make  func(t *testing.T, size, block int64) string
	}{
		{"our image, 1 MiB", mib, func(t *testing.T, size, block int64) string {
			return create(t, strconv.FormatInt(size, 10), "--block-size", strconv.FormatInt(block, 10))
		}},
		{"QEMU's image, 1 MiB", mib, func(t *testing.T, size, block int64) string {
			return qemuCreate(t, size, fmt.Sprintf("subformat=dynamic,block_size=%d", block))
		}},
		{"our image, 8 MiB", 8 * mib, func(t *testing.T, size, block int64) string {
			return create(t, strconv.FormatInt(size, 10), "--block-size", strconv.FormatInt(block, 10), "--zero-blocks")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const chunk = 4 << 30 // bytes of the disk, with 512-byte sectors
			size := chunk + 40*mib + int64(7*512)
			img, raw := tc.make(t, size, tc.block), filepath.Join(t.TempDir(), "want.raw")
			must(t, "truncate", "--size", strconv.FormatInt(size, 10), raw)
			last := (size - 1) / tc.block
			turns := turnWriter{
				rng: rand.New(rand.NewPCG(uint64(tc.block), 4)), size: size, block: tc.block,
				at: []int64{0, 1, 511, 512, 513, chunk/tc.block - 1, chunk / tc.block, last - 1, last},
			}
			want := openDisk(t, raw, 0)
			for range rounds {
				turns.qemu(t, img, want)
				must(t, "qemu-img", "check", "-f", "vhdx", img)
				s := serve(t, img)
				sameToQemu(t, s.disk, "raw", raw)
				turns.ours(t, s.disk, want)
				s.end(t)
				checkClean(t, img)
				sameToQemu(t, img, "vhdx", raw)
			}
		})
	}
}

func sameToQemu(t *testing.T, path, format, raw string) {
	t.Helper()
	if out, err := command("qemu-img", "compare", "-f", format, "-F", "raw", path, raw); err != nil {
		t.Fatalf("qemu-img compare: %v\n%s", err, out)
	}
}

// A turnWriter writes patterns to some of the blocks of a disk.
type turnWriter struct {
	rng         *rand.Rand
	size, block int64
	at          []int64 // the blocks
}

// extent returns a range in one of the blocks or across its end, in whole sectors.
func (w *turnWriter) extent() (off, n int64) {
	const sector = 512
	off = w.at[w.rng.IntN(len(w.at))]*w.block + w.rng.Int64N(w.block/sector)*sector
	if w.rng.IntN(4) == 0 {
		off = off / w.block * w.block
	}
	off = min(off, w.size-sector)
	n = sector * (1 + w.rng.Int64N(1<<(1+w.rng.IntN(11))))
	return off, min(n, w.size-off)
}

// qemu lets qemu-io write, and want keep, some patterns.
func (w *turnWriter) qemu(t *testing.T, img string, want *os.File) {
	t.Helper()
	var commands []string
	for range 4 {
		off, n := w.extent()
		pattern := byte(1 + w.rng.IntN(255))
		commands = append(commands, fmt.Sprintf("write -P %d %d %d", pattern, off, n))
		writePattern(t, want, pattern, off, n)
	}
	qemuWrite(t, img, commands...)
}

// ours writes some patterns to disk.raw and to want, and punches and syncs now and then.
func (w *turnWriter) ours(t *testing.T, disk string, want *os.File) {
	t.Helper()
	f := openDisk(t, disk, 0)
	defer f.Close()
	for range 6 {
		off, n := w.extent()
		switch w.rng.IntN(5) {
		case 0:
			n = min(n+w.block, w.size-off) // a whole block may be in it
			for _, f := range []*os.File{f, want} {
				if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
					t.Fatal(err)
				}
			}
		case 1:
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			fallthrough
		default:
			pattern := byte(1 + w.rng.IntN(255))
			writePattern(t, f, pattern, off, n)
			writePattern(t, want, pattern, off, n)
		}
	}
}

func writePattern(t *testing.T, f *os.File, pattern byte, off, n int64) {
	t.Helper()
	for _, b := int64(0), fill(pattern); n > 0; {
		step := min(n, int64(len(b)))
		if _, err := f.WriteAt(b[:step], off); err != nil {
			t.Fatal(err)
		}
		off, n = off+step, n-step
	}
}

// libvhdi reads a differencing image of ours, over a parent of ours, as we do. Trimmed blocks are left out: libvhdi
// takes those for the parent's.
func TestChildReadByLibvhdi(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "vhdimount")
	for _, v := range variants {
		if !v.child {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			img := v.create(t, "32MiB")
			s := serve(t, img)
			f, rng := openDisk(t, s.disk, 0), rand.New(rand.NewPCG(32, 0))
			size := sizeOf(t, f)
			for range 40 {
				off := rng.Int64N(size/2/v.sector) * v.sector // what is behind is left to the parent
				writePattern(t, f, byte(1+rng.IntN(255)), off, v.sector*(1+rng.Int64N(1<<(1+rng.IntN(9)))))
			}
			writePattern(t, f, 0xEE, 18*mib, 2*mib) // a block, wholly
			f.Close()
			want := sha256File(t, s.disk)
			s.end(t)
			checkClean(t, img)

			if got := libvhdiSum(t, img); got != want {
				t.Errorf("libvhdi reads digest %s, want %s", got, want)
			}
		})
	}
}
