package filetree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A flipped disk has other bytes in some places.
type flipped struct {
	io.ReaderAt
	at map[int64]byte
}

func (f flipped) ReadAt(b []byte, off int64) (int, error) {
	n, err := f.ReaderAt.ReadAt(b, off)
	for at, c := range f.at {
		if at >= off && at < off+int64(n) {
			b[at-off] = c
		}
	}
	return n, err
}

var errEnough = errors.New("enough")

// A bounded sink ends what a test reads.
type bounded struct{ left int }

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errEnough
	}
	return len(p), nil
}

func (b *bounded) Zeros(n int64) error {
	if n < 0 {
		panic(fmt.Sprintf("%d zeros", n))
	}
	b.left -= 64
	if b.left < 0 {
		return errEnough
	}
	return nil
}

// readAll reads all of a disk, as far as it can be read, and returns the errors that there were.
func readAll(disk io.ReaderAt, size int64, kind string) (errs []error) {
	tree, err := Open(disk, size, kind)
	if err != nil {
		return []error{err}
	}
	w := Walker{Tree: tree}
	sink, files := &bounded{64 << 20}, 0
	var walk func(dir *File, depth int)
	walk = func(dir *File, depth int) {
		list, err := w.Sorted(dir, depth)
		errs = append(errs, err)
		for _, f := range list {
			if files++; files > 5000 || sink.left < 0 {
				return
			}
			switch {
			case f.Mode.IsDir():
				walk(f, depth+1)
			case f.Mode.IsRegular():
				errs = append(errs, Read(tree, f, sink))
			default:
				_, err := Link(tree, f)
				errs = append(errs, err)
			}
		}
	}
	root, err := tree.Root()
	if err != nil {
		return []error{err}
	}
	walk(root, 0)
	return errs
}

// Whatever bytes a disk has, reading it ends, and without a panic that has to be caught.
func TestDamage(t *testing.T) {
	rounds := 400
	if testing.Short() {
		rounds = 40
	}
	for _, name := range []string{"ext4", "ext4 inline", "ext3", "XFS", "FAT16", "FAT32", "Rock + Joliet", "NTFS", "exFAT"} {
		t.Run(name, func(t *testing.T) {
			b := builders[name]
			dir := sample(t, b.links, true)
			path := b.build(t, dir)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			st, _ := f.Stat()
			used := metadata(t, f, st.Size())
			errs := 0
			for seed := range uint64(rounds) {
				rng := rand.New(rand.NewPCG(seed, 3))
				d := flipped{f, map[int64]byte{}}
				for range 1 + rng.IntN(40) {
					at := used[rng.IntN(len(used))] + rng.Int64N(512)
					if rng.IntN(3) == 0 { // where most of the structure is
						at = used[rng.IntN(min(len(used), 8))] + rng.Int64N(512)
					}
					d.at[at] = []byte{0, 1, 0x7F, 0x80, 0xFF, byte(rng.Uint32())}[rng.IntN(6)]
				}
				for _, err := range readAll(d, st.Size(), b.kind) {
					if err != nil {
						errs++
					}
					if err != nil && (strings.Contains(err.Error(), "runtime error") || strings.Contains(err.Error(), "zeros")) {
						t.Fatalf("seed %d: %v", seed, err)
					}
				}
			}
			if errs == 0 {
				t.Error("no disk has an error")
			}
		})
	}
}

// metadata returns the sectors of a disk that are not random data and not zero.
func metadata(t *testing.T, f io.ReaderAt, size int64) (list []int64) {
	t.Helper()
	piece := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(piece)) {
		n, err := f.ReadAt(piece, at)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		for i := 0; i+512 <= n; i += 512 {
			if zeros := bytes.Count(piece[i:i+512], []byte{0}); zeros > 50 && zeros < 512 {
				list = append(list, at+int64(i))
			}
		}
	}
	return list
}

// A directory that is its own child is read once, and a file that is made of the same blocks again and again ends.
func TestLoops(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "child"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := ext("-t", "ext2")(t, dir)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, _ := f.Stat()
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	i := strings.Index(string(b), "child") - 8
	le.PutUint32(b[i:], extRoot)
	errs := readAll(strings.NewReader(string(b)), st.Size(), "ext4")
	if err := errors.Join(errs...); err == nil || !strings.Contains(err.Error(), "more than one place") {
		t.Errorf("%v", err)
	}
}
