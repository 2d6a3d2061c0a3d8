package test

import (
	"bytes"
	"encoding/binary"
	"maps"
	"os"
	"slices"
	"testing"
)

// GUIDs as they stand in a file (MS-VHDX 2.2.3.2 and 2.6.2.4).
const (
	batRegion         = "\x66\x77\xC2\x2D\x23\xF6\x00\x42\x9D\x64\x11\x5E\x9B\xFD\x4A\x08"
	metadataRegion    = "\x06\xA2\x7C\x8B\x90\x47\x9A\x4B\xB8\xFE\x57\x5F\x05\x0F\x88\x6E"
	logicalSectorSize = "\x1D\xBF\x41\x81\x6F\xA9\x09\x47\xBA\x47\xF2\x33\xA8\xFA\xAB\x5F"
)

// regionOffset returns the file offset of a region by the first region table of an image.
func regionOffset(t *testing.T, img, guid string) int64 {
	t.Helper()
	table := readAt(t, img, 192<<10, 64<<10) // MS-VHDX 2.2.3
	i := bytes.Index(table, []byte(guid))
	if i < 0 {
		t.Fatalf("%s has no such region", img)
	}
	return int64(binary.LittleEndian.Uint64(table[i+16:]))
}

// setLogicalSectorSize changes the metadata item of an image. Only the place of sector bitmap entries in the
// BAT depends on it besides, and the BAT of a small disk has none. It serves to fill a disk of 4096-byte sectors
// by tools that know 512 alone.
func setLogicalSectorSize(t *testing.T, img string, size uint32) {
	t.Helper()
	region := regionOffset(t, img, metadataRegion)
	table := readAt(t, img, region, 64<<10)
	i := bytes.Index(table, []byte(logicalSectorSize))
	if i < 0 {
		t.Fatalf("%s has no logical sector size", img)
	}
	item := region + int64(binary.LittleEndian.Uint32(table[i+16:]))
	writeAt(t, img, binary.LittleEndian.AppendUint32(nil, size), item)
}

// placeBlocks adds payload blocks, each full of one byte, to the end of an empty image of 1 MiB blocks and 512-byte
// sectors, and enters them into its BAT.
func placeBlocks(t *testing.T, img string, blocks map[int64]byte) {
	t.Helper()
	const chunkRatio, fullyPresent = 4096, 6 // MS-VHDX 2.5
	bat := regionOffset(t, img, batRegion)
	end := (stat(t, img).Size + mib - 1) / mib * mib
	for _, n := range slices.Sorted(maps.Keys(blocks)) {
		writeAt(t, img, fill(blocks[n]), end)
		entry := binary.LittleEndian.AppendUint64(nil, uint64(end)|fullyPresent)
		writeAt(t, img, entry, bat+8*(n+n/chunkRatio))
		end += mib
	}
}

// fill returns a MiB of one byte.
func fill(b byte) []byte { return bytes.Repeat([]byte{b}, mib) }

func readAt(t *testing.T, path string, off int64, n int) []byte {
	t.Helper()
	f := open(t, path)
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	return b
}

func writeAt(t *testing.T, path string, b []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}
