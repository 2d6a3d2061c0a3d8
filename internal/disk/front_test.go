package disk

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// someImage returns the bytes of an image with a few blocks.
func someImage(t testing.TB) []byte {
	path := filepath.Join(t.TempDir(), "a.vhdx")
	b, err := vhdx.NewBuilder(t.Context(), path, vhdx.CreateOptions{Size: 20 << 20, BlockSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{7 << 20, 3 << 20, 19 << 20} { // in no order
		if _, err := b.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// readAll reads the extents of a stream and returns the disk.
func readAll(f *Front) ([]byte, error) {
	disk := make([]byte, f.Image.Size())
	err := f.Each(func(e vhdx.Extent, r io.Reader) error {
		_, err := io.ReadFull(r, disk[e.DiskOff:][:e.Len])
		return err
	})
	return disk, err
}

func TestReadFront(t *testing.T) {
	b := someImage(t)
	f, _, err := ReadFront("stream", bytes.NewReader(b))
	if err != nil || f == nil {
		t.Fatal(f, err)
	}
	disk, err := readAll(f)
	if err != nil {
		t.Fatal(err)
	}
	for off, want := range map[int]string{3 << 20: "data", 7 << 20: "data", 19 << 20: "data", 0: "\x00\x00\x00\x00"} {
		if got := string(disk[off:][:4]); got != want {
			t.Errorf("at %d: %q", off, got)
		}
	}
	// The end of the last block is needed, as it is on the disk.
	f, _, err = ReadFront("stream", bytes.NewReader(b[:len(b)-1]))
	if err == nil {
		_, err = readAll(f)
	}
	if err == nil {
		t.Error("one byte less is enough")
	}
}

// What is not in order is handed back whole.
func TestReadFrontGivesBack(t *testing.T) {
	b := someImage(t)
	for _, n := range []int{0, 1000, 1 << 20, 3 << 20} {
		f, rest, err := ReadFront("stream", bytes.NewReader(b[:n]))
		if f != nil || err != nil {
			t.Fatalf("%d bytes: %v, %v", n, f, err)
		}
		if got, err := io.ReadAll(rest); err != nil || !bytes.Equal(got, b[:n]) {
			t.Errorf("%d bytes: %d came back, %v", n, len(got), err)
		}
	}
}

// Nothing in a stream makes it fail otherwise than by an error, or be read without an end.
func FuzzReadFront(f *testing.F) {
	b := someImage(f)
	f.Add(b[:320<<10], b[2<<20:][:66<<10], b[3<<20:][:4<<10])
	f.Fuzz(func(t *testing.T, head, metadata, bat []byte) {
		all := make([]byte, 8<<20)
		copy(all, head[:min(len(head), 1<<20)])
		copy(all[2<<20:3<<20], metadata)
		copy(all[3<<20:4<<20], bat)
		front, rest, err := ReadFront("stream", bytes.NewReader(all))
		switch {
		case err != nil:
			return
		case front == nil:
			if n, err := io.Copy(io.Discard, rest); err != nil || n != int64(len(all)) {
				t.Fatalf("%d bytes came back, %v", n, err)
			}
			return
		}
		end := int64(0)
		for _, e := range front.Extents {
			if e.DiskOff < end || e.Len <= 0 || e.Len > front.Image.Size()-e.DiskOff || e.FileOff < 1<<20 {
				t.Fatalf("extent %+v", e)
			}
			end = e.End()
		}
		_ = front.Each(func(_ vhdx.Extent, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
	})
}
