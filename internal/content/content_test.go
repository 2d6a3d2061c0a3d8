package content

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"
)

// gptHeader returns the header of a GPT, with a good checksum where right is set.
func gptHeader(right bool) []byte {
	h := make([]byte, 92)
	copy(h, "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
	binary.LittleEndian.PutUint64(h[24:], 1)
	if right {
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	}
	return h
}

func signed(signature string, size int) []byte {
	b := make([]byte, size)
	copy(b, signature)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b, castagnoli))
	return b
}

func metadataTable() []byte {
	b := make([]byte, 4096)
	copy(b, "metadata")
	b[10] = 2
	copy(b[64:], fileParameters[:])
	return b
}

func TestIdentify(t *testing.T) {
	const mib = 1 << 20
	boot := "\x55\xaa"
	for _, tc := range []struct {
		name  string
		size  int
		bytes map[int]string // by offset
		want  string
	}{
		{"empty", 0, nil, "an empty file"},
		{"zeros", 2 * mib, nil, "nothing but zeros"},
		{"one byte", 1, map[int]string{0: "x"}, "no known"},
		{"odd size", 4097, map[int]string{0: "x"}, "no known"},
		{"VHDX", mib, map[int]string{0: "vhdxfile"}, "a VHDX image"},
		{"cut VHDX", 8, map[int]string{0: "vhdxfile"}, "a VHDX image"},
		{"first header", mib, map[int]string{64 << 10: string(signed("head", 4096))}, "without its file type identifier"},
		{"second region table", mib, map[int]string{256 << 10: string(signed("regi", 64<<10))}, "without its file type identifier"},
		{"two bad headers", mib, map[int]string{64 << 10: "head", 128 << 10: "head"}, "without its file type identifier"},
		{"a word at the place of a header", mib, map[int]string{64 << 10: "head"}, "zeros|no known"},
		{"metadata alone", 4 * mib, map[int]string{2 * mib: string(metadataTable())}, "without its file type identifier"},
		{"an image inside a partition", 4 * mib, map[int]string{510: boot, 2 * mib: string(metadataTable())}, "MBR"},
		{"header and boot sector", mib, map[int]string{510: boot, 64 << 10: string(signed("head", 4096))}, "without its file type identifier"},
		{"QCOW2", 512, map[int]string{0: "QFI\xfb\x00\x00\x00\x03"}, "a QCOW2 image"},
		{"QCOW", 512, map[int]string{0: "QFI\xfb\x00\x00\x00\x01"}, "a QCOW image"},
		{"QED", 512, map[int]string{0: "QED\x00"}, "a QED image"},
		{"VMDK", 512, map[int]string{0: "KDMV"}, "a VMDK image"},
		{"VMDK of ESX", 512, map[int]string{0: "COWD"}, "a VMDK image"},
		{"VMDK description", 300, map[int]string{0: "# Disk DescriptorFile\n"}, "a VMDK image"},
		{"dynamic VHD", 4096, map[int]string{0: "conectix"}, "an old VHD image"},
		{"fixed VHD with a boot sector", mib + 512, map[int]string{510: boot, mib: "conectix"}, "an old VHD image"},
		{"fixed VHD of an old program", mib + 511, map[int]string{mib: "conectix"}, "an old VHD image"},
		{"VDI", 512, map[int]string{64: "\x7f\x10\xda\xbe"}, "a VDI image"},
		{"DMG", 4096, map[int]string{4096 - 512: "koly"}, "DMG"},
		{"gzip", 20, map[int]string{0: "\x1f\x8b\x08"}, "gzip data"},
		{"xz", 32, map[int]string{0: "\xfd7zXZ\x00"}, "xz data"},
		{"zstd", 32, map[int]string{0: "\x28\xb5\x2f\xfd"}, "zstd data"},
		{"zstd, skippable first", 32, map[int]string{0: "\x5e\x2a\x4d\x18"}, "zstd data"},
		{"lz4", 32, map[int]string{0: "\x04\x22\x4d\x18"}, "lz4 data"},
		{"bzip2", 32, map[int]string{0: "BZh91AY&SY"}, "bzip2 data"},
		{"bzip2 of nothing", 14, map[int]string{0: "BZh9\x17rE8P\x90"}, "bzip2 data"},
		{"text like bzip2", 32, map[int]string{0: "BZh9 is a word"}, "no known"},
		{"zip", 32, map[int]string{0: "PK\x03\x04"}, "a ZIP archive"},
		{"7z", 32, map[int]string{0: "7z\xbc\xaf\x27\x1c"}, "a 7z archive"},
		{"tar", 10240, map[int]string{257: "ustar"}, "a tar archive"},
		{"MBR", mib, map[int]string{510: boot}, "MBR"},
		{"GPT", mib, map[int]string{510: boot, 512: string(gptHeader(true))}, "GPT"},
		{"GPT of 4096", mib, map[int]string{510: boot, 4096: string(gptHeader(true))}, "GPT"},
		{"image that is cut behind its header", 70 << 10, map[int]string{64 << 10: string(signed("head", 4096))}, "without its file type identifier"},
	} {
		b := make([]byte, tc.size)
		for off, s := range tc.bytes {
			copy(b[off:], s)
		}
		k, err := Identify(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		found := false
		for _, want := range strings.Split(tc.want, "|") {
			found = found || strings.Contains(k.String(), want)
		}
		if !found {
			t.Errorf("%s: %v, want %s", tc.name, k, tc.want)
		}
	}
}

func TestSectorSize(t *testing.T) {
	disk := func(at512, at4096 []byte) []byte {
		b := make([]byte, 8<<10)
		copy(b[512:], at512)
		copy(b[4096:], at4096)
		return b
	}
	for _, tc := range []struct {
		name string
		head []byte
		want int64
	}{
		{"none", disk(nil, nil), 0},
		{"512", disk(gptHeader(true), nil), 512},
		{"4096", disk(nil, gptHeader(true)), 4096},
		{"damaged, 4096", disk(nil, gptHeader(false)), 4096},
		{"both, the first damaged", disk(gptHeader(false), gptHeader(true)), 4096},
		{"both, the second damaged", disk(gptHeader(true), gptHeader(false)), 512},
		{"short", disk(gptHeader(true), nil)[:600], 0},
		{"nothing", nil, 0},
	} {
		if got := SectorSize(tc.head); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
}

// What is said names the file so that a shell takes it.
func TestAdvice(t *testing.T) {
	for _, tc := range []struct {
		kind *Kind
		path string
		want string
	}{
		{qcow2, "a.qcow2", "qemu-img convert -O raw a.qcow2 disk.raw"},
		{qcow2, "it's a disk", `-O raw 'it'\''s a disk' disk.raw`},
		{qcow2, "-", "-O raw FILE disk.raw"},
		{qcow2, "a\nb", "-O raw FILE disk.raw"},
		{VHD, "a.vhd", "vhdxfs convert a.vhd disk.vhdx"},
		{gzip, "-", "put gzip -dc into the pipe"},
		{xz, "a.xz", "xz -dc a.xz >disk"},
		{Raw, "a", ""},
	} {
		if got := tc.kind.Advice(tc.path); !strings.Contains(got, tc.want) || tc.want == "" && got != "" {
			t.Errorf("%v, %q: %q, want %q", tc.kind, tc.path, got, tc.want)
		}
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add([]byte("vhdxfile"))
	f.Add(append(make([]byte, 4096), gptHeader(true)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := Identify(bytes.NewReader(b), int64(len(b)))
		if err != nil || k == nil {
			t.Fatalf("%v, %v", k, err)
		}
		_ = SectorSize(b)
	})
}
