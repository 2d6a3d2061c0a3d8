package disk

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
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

// Nothing in a stream makes it fail otherwise than by an error, or be read without an end. The checksums of what was changed are
// right, so that more is looked at than those.
func FuzzReadFront(f *testing.F) {
	image := someImage(f)
	places := []int64{ondisk.HeaderOffsets[0], ondisk.HeaderOffsets[1], ondisk.RegionTableOffsets[0], ondisk.RegionTableOffsets[1],
		2 << 20, 3 << 20} // the last two are metadata and BAT
	for i := range places {
		f.Add(uint8(i), uint16(0), []byte{}, uint8(0), uint16(8), []byte{1})
	}
	f.Add(uint8(5), uint16(16), []byte{6, 0, 0, 0, 0, 0, 0, 0x80}, uint8(4), uint16(32), []byte{0xff})
	f.Fuzz(func(t *testing.T, place uint8, off uint16, change []byte, place2 uint8, off2 uint16, change2 []byte) {
		all := bytes.Clone(image)
		copy(all[places[int(place)%len(places)]+int64(off):], change)
		copy(all[places[int(place2)%len(places)]+int64(off2):], change2)
		for i, at := range places[:4] {
			b := all[at:][:ondisk.HeaderSize]
			if i >= 2 {
				b = all[at:][:ondisk.RegionTableSize]
			}
			binary.LittleEndian.PutUint32(b[4:], ondisk.Checksum(b, 4))
		}
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
