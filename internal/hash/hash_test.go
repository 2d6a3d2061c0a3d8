package hash

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/internal/disk"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

const mib = 1 << 20

// someDisk writes a disk of 9 MiB and tail bytes, with data in places, and a MiB of zeros that are stored.
func someDisk(t *testing.T, tail int) ([]byte, string) {
	t.Helper()
	rng := rand.New(rand.NewPCG(5, uint64(tail)))
	p := make([]byte, 9*mib+tail)
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(p))); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int{{1, 3}, {mib - 10, 20}, {3*mib + 40<<10, 5000}, {5 * mib, 2 * mib}, {len(p) - 1, 1}, {8 * mib, 0}} {
		n := r[1]
		for i := range n {
			p[r[0]+i] = byte(1 + rng.IntN(255))
		}
		if n == 0 {
			n = mib / 2
		}
		if _, err := f.WriteAt(p[r[0]:][:n], int64(r[0])); err != nil {
			t.Fatal(err)
		}
	}
	return p, path
}

func open(t *testing.T, path string) *disk.Disk {
	t.Helper()
	d, err := disk.Open(path, disk.Raw, vhdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func listOf(t *testing.T, d *disk.Disk) (string, *Result) {
	t.Helper()
	var b bytes.Buffer
	l := NewListWriter(&b, d.Size())
	r, err := Disk(t.Context(), d, Options{Whole: true, Block: l.Block, Workers: 3})
	if err == nil {
		err = l.End(r.Whole)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), r
}

func TestDisk(t *testing.T) {
	for _, tail := range []int{0, 1, 512, mib - 1} {
		want, path := someDisk(t, tail)
		for _, workers := range []int{0, 1, 5} {
			var blocks, told int64
			total := int64(-1)
			r, err := Disk(t.Context(), open(t, path), Options{
				Whole: true, Workers: workers, Phase: func(_ string, n int64) { total = n }, Progress: func(n int64) { told += n },
				Block: func(off int64, d Digest) error {
					if p := want[off:min(off+mib, int64(len(want)))]; d != sha256.Sum256(p) {
						return fmt.Errorf("another digest of the block at %d", off)
					}
					blocks++
					return nil
				},
			})
			if err != nil || *r.Whole != sha256.Sum256(want) || r.Size != int64(len(want)) || told != total || total != r.Size {
				t.Errorf("tail %d: %+v, %v; %d of %d told", tail, r, err, told, total)
			}
			n := 6 // 0, 1, 3, 5, 6 and the last
			if blocks != int64(n) || tail > 0 && r.Data != int64(5*mib+tail) {
				t.Errorf("tail %d: %d blocks, %d bytes of data", tail, blocks, r.Data)
			}
		}
	}
}

func TestCheck(t *testing.T) {
	want, path := someDisk(t, 700)
	list, _ := listOf(t, open(t, path))
	if strings.Count(list, "\n") != 3+6+2 {
		t.Errorf("the list is\n%s", list)
	}
	size := int64(len(want))
	for _, tc := range []struct {
		name   string
		change func(f *os.File) error
		ranges string
	}{
		{"nothing", func(*os.File) error { return nil }, ""},
		{"a byte", func(f *os.File) error { _, err := f.WriteAt([]byte{0}, 5*mib+7); return err }, "5+1"},
		{"two neighbours", func(f *os.File) error { _, err := f.WriteAt([]byte{0, 0}, 6*mib-1); return err }, "5+2"},
		{"data for zeros", func(f *os.File) error { _, err := f.WriteAt([]byte{1}, 4*mib); return err }, "4+1"},
		{"zeros for data", func(f *os.File) error { _, err := f.WriteAt(make([]byte, 2*mib), 0); return err }, "0+2"},
		{"zeros for what was last", func(f *os.File) error { _, err := f.WriteAt([]byte{0}, size-1); return err }, "9+700B"},
		{"larger", func(f *os.File) error { return f.Truncate(size + 5*mib) }, "9+5243580B"},
		{"larger, with data", func(f *os.File) error { _, err := f.WriteAt([]byte{1}, size+5*mib-1); return err }, "9+5243580B"},
		{"smaller", func(f *os.File) error { return f.Truncate(6 * mib) }, "6+3146428B"},
	} {
		_, path := someDisk(t, 700)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil {
			err = errors.Join(tc.change(f), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		l, err := ReadList(strings.NewReader(list))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		_, err = Check(t.Context(), open(t, path), l, Options{Workers: 3}, func(off, n int64) error {
			text := fmt.Sprintf("%d+%d", off/mib, n/mib)
			if n%mib != 0 {
				text = fmt.Sprintf("%d+%dB", off/mib, n)
			}
			got = append(got, text)
			return nil
		})
		if err != nil || strings.Join(got, " ") != tc.ranges {
			t.Errorf("%s: %q, %v, want %q", tc.name, got, err, tc.ranges)
		}
	}
	// The digest of the whole disk alone, as sha256sum prints it.
	for digest, want := range map[string]int{fmt.Sprintf("%x", sha256.Sum256(want)): 0, strings.Repeat("ab", 32): 1} {
		l, err := ReadList(strings.NewReader(digest + "  disk.raw\n"))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		if _, err := Check(t.Context(), open(t, path), l, Options{}, func(int64, int64) error { n++; return nil }); err != nil || n != want {
			t.Errorf("%d ranges, %v, want %d", n, err, want)
		}
	}
}

// A list that is cut off, or has anything in it that no list has, is never taken for one.
func TestBadLists(t *testing.T) {
	_, path := someDisk(t, 0)
	list, r := listOf(t, open(t, path))
	for name, bad := range map[string]string{
		"empty":            "",
		"title":            strings.Replace(list, "digests 1", "digests 2", 1),
		"negative size":    strings.Replace(list, "size ", "size -", 1),
		"large size":       strings.Replace(list, "size ", "size 99999999999999999999", 1),
		"other blocks":     strings.Replace(list, "block 1048576", "block 512", 1),
		"order":            strings.Replace(list, "\n3145728 ", "\n0 ", 1),
		"odd offset":       strings.Replace(list, "\n3145728 ", "\n3145729 ", 1),
		"far offset":       strings.Replace(list, "\n3145728 ", "\n31457280000 ", 1),
		"short digest":     strings.Replace(list, r.Whole.String(), "ab", 1),
		"no digest":        strings.Replace(list, r.Whole.String(), strings.Repeat("x", 64), 1),
		"wrong count":      strings.Replace(list, "end 6", "end 7", 1),
		"a block left out": strings.Replace(list, "\n3145728 ", "\nsha256 ", 1),
		"long line":        list[:100] + strings.Repeat("x", maxLine),
	} {
		if err := readAll(bad); !errors.Is(err, ErrList) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range len(list) - 1 {
		if err := readAll(list[:n]); !errors.Is(err, ErrList) {
			t.Fatalf("cut at %d of %d: %v", n, len(list), err)
		}
	}
	if err := readAll(list); err != nil {
		t.Error(err)
	}
}

func readAll(list string) error {
	l, err := ReadList(strings.NewReader(list))
	for err == nil {
		_, _, err = l.Next()
	}
	if err == io.EOF {
		return nil
	}
	return err
}

func FuzzReadList(f *testing.F) {
	f.Add(listTitle + "\nsize 3000000\nblock 1048576\n1048576 " + strings.Repeat("0a", 32) + "\nend 1\n")
	f.Fuzz(func(t *testing.T, list string) {
		l, err := ReadList(strings.NewReader(list))
		last := int64(-1)
		for err == nil {
			var off int64
			if off, _, err = l.Next(); err == nil && (off <= last || off >= l.Size || off%BlockSize != 0) {
				t.Fatalf("block %d behind %d, of %d", off, last, l.Size)
			}
			last = off
		}
		if err != io.EOF && !errors.Is(err, ErrList) {
			t.Fatal(err)
		}
	})
}

// A failure ends all that is under way, and the zeros behind it.
func TestDiskEnds(t *testing.T) {
	_, path := someDisk(t, 0)
	broken := errors.New("broken")
	if _, err := Disk(t.Context(), open(t, path), Options{Whole: true, Block: func(int64, Digest) error { return broken }}); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	huge := filepath.Join(t.TempDir(), "huge")
	f, err := os.Create(huge)
	if err == nil {
		err = errors.Join(f.Truncate(1<<43), f.Close())
	}
	if err != nil {
		t.Skipf("no file of 8 TiB: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	if _, err := Disk(ctx, open(t, huge), Options{Whole: true, Progress: func(int64) { cancel(broken) }}); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if r, err := Disk(t.Context(), open(t, huge), Options{}); err != nil || r.Data != 0 || r.Size != 1<<43 {
		t.Errorf("%+v, %v", r, err)
	}
}
