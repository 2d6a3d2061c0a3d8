package content

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/vhdxfs/vhdxfs/internal/terminal"
)

// A Kind is what something holds.
type Kind struct {
	name  string // with its article
	group group
	tool  string // command that helps, without the name of the file
}

// A group says what can be done with a kind.
type group uint8

const (
	disk       group = iota // its bytes are those of a disk, or of none that is known
	vhdx                    // this program reads it
	vhd                     // likewise
	image                   // qemu-img reads it
	compressed              // tool writes what is in it to standard output
	archive                 // tool unpacks it
)

// The kinds that callers ask for. Raw is what none of the others is.
var (
	Raw         = &Kind{name: "no known disk image format"}
	Empty       = &Kind{name: "an empty file"}
	Zeros       = &Kind{name: "nothing but zeros"}
	GPT         = &Kind{name: "a raw disk with a GPT partition table"}
	MBR         = &Kind{name: "a raw disk with a boot sector or an MBR partition table"}
	VHDX        = &Kind{name: "a VHDX image", group: vhdx}
	DamagedVHDX = &Kind{name: "a VHDX image without its file type identifier", group: vhdx} // headers, region tables or metadata are there
	VHD         = &Kind{name: "an old VHD image", group: vhd}
)

var (
	qcow      = &Kind{name: "a QCOW image", group: image}
	qcow2     = &Kind{name: "a QCOW2 image", group: image}
	qed       = &Kind{name: "a QED image", group: image}
	vmdk      = &Kind{name: "a VMDK image", group: image}
	vdi       = &Kind{name: "a VDI image", group: image}
	parallels = &Kind{name: "a Parallels image", group: image}
	dmg       = &Kind{name: "an Apple disk image (DMG)", group: image}
	gzip      = &Kind{name: "gzip data", group: compressed, tool: "gzip -dc"}
	xz        = &Kind{name: "xz data", group: compressed, tool: "xz -dc"}
	zstd      = &Kind{name: "zstd data", group: compressed, tool: "zstd -dc"}
	bzip2     = &Kind{name: "bzip2 data", group: compressed, tool: "bzip2 -dc"}
	lz4       = &Kind{name: "lz4 data", group: compressed, tool: "lz4 -dc"}
	zip       = &Kind{name: "a ZIP archive", group: archive, tool: "unzip"}
	sevenZip  = &Kind{name: "a 7z archive", group: archive, tool: "7z x"}
	rar       = &Kind{name: "a RAR archive", group: archive, tool: "unrar x"}
	tar       = &Kind{name: "a tar archive, as OVA files are", group: archive, tool: "tar -xf"}
	wim       = &Kind{name: "a WIM archive", group: archive, tool: "wimapply"}
	ewf       = &Kind{name: "an EnCase image (E01)", group: archive, tool: "ewfexport"}
)

// signatures are the bytes at an offset by which a kind is known. An offset below zero counts from the end.
var signatures = []struct {
	kind  *Kind
	off   int64
	bytes string
}{
	{VHDX, 0, "vhdxfile"}, // MS-VHDX 2.2.1
	{qcow2, 0, "QFI\xfb\x00\x00\x00\x02"},
	{qcow2, 0, "QFI\xfb\x00\x00\x00\x03"},
	{qcow, 0, "QFI\xfb\x00\x00\x00\x01"},
	{qcow2, 0, "QFI\xfb"},
	{qed, 0, "QED\x00"},
	{vmdk, 0, "KDMV"},
	{vmdk, 0, "COWD"},
	{vmdk, 0, "# Disk DescriptorFile"},
	{vdi, 64, "\x7f\x10\xda\xbe"},
	{parallels, 0, "WithoutFreeSpace"},
	{parallels, 0, "WithouFreSpacExt"},
	{VHD, 0, "conectix"},
	{gzip, 0, "\x1f\x8b\x08"},
	{xz, 0, "\xfd7zXZ\x00"},
	{zstd, 0, "\x28\xb5\x2f\xfd"},
	{lz4, 0, "\x04\x22\x4d\x18"},
	{zip, 0, "PK\x03\x04"},
	{zip, 0, "PK\x05\x06"},
	{sevenZip, 0, "7z\xbc\xaf\x27\x1c"},
	{rar, 0, "Rar!\x1a\x07"},
	{tar, 257, "ustar"},
	{wim, 0, "MSWIM\x00\x00\x00"},
	{ewf, 0, "EVF\x09\x0d\x0a\xff\x00"},
}

// footers are like signatures, for what has its signature at its end, or nowhere else where its begin was overwritten.
var footers = []struct {
	kind  *Kind
	size  int // bytes
	bytes string
}{
	{VHD, 512, "conectix"},
	{VHD, 511, "conectix"}, // as Virtual PC before 2004 wrote it
	{dmg, 512, "koly"},
}

// FooterSize is how many bytes at the end Footer has to see.
const FooterSize = 512

// Identify tells what r holds, which has size bytes.
func Identify(r io.ReaderAt, size int64) (*Kind, error) {
	if size == 0 {
		return Empty, nil
	}
	head := make([]byte, min(size, headSize))
	if err := read(r, head, 0); err != nil {
		return nil, err
	}
	if k := known(head); k != nil {
		return k, nil
	}
	if is, err := damagedVHDX(r, size); err != nil {
		return nil, err
	} else if is {
		return DamagedVHDX, nil
	}
	tail := make([]byte, min(size, FooterSize))
	if err := read(r, tail, size-int64(len(tail))); err != nil {
		return nil, err
	}
	if k := Footer(tail); k != nil {
		return k, nil
	}
	return asDisk(r, head, size)
}

const headSize = 8 << 10 // bytes: up to the first sectors of a disk with sectors of 4096 bytes

// known returns the kind whose signature is in head, or nil.
func known(head []byte) *Kind {
	for _, s := range signatures {
		if s.off < int64(len(head)) && bytes.HasPrefix(head[s.off:], []byte(s.bytes)) {
			return s.kind
		}
	}
	// Three letters and a digit are too few: what follows is the magic of a block, or of the end of an empty stream.
	if len(head) >= 10 && string(head[:3]) == "BZh" && head[3] >= '1' && head[3] <= '9' &&
		(string(head[4:10]) == "1AY&SY" || string(head[4:10]) == "\x17rE8P\x90") {
		return bzip2
	}
	// Frames of zstd that are to be skipped may come first.
	if len(head) >= 4 && head[0]&0xF0 == 0x50 && string(head[1:4]) == "\x2a\x4d\x18" {
		return zstd
	}
	return nil
}

// Footer tells by the last FooterSize bytes what something is whose first bytes have not told, or returns nil.
func Footer(tail []byte) *Kind {
	for _, f := range footers {
		if len(tail) >= f.size && bytes.HasPrefix(tail[len(tail)-f.size:], []byte(f.bytes)) {
			return f.kind
		}
	}
	return nil
}

// asDisk tells what a raw disk begins with.
func asDisk(r io.ReaderAt, head []byte, size int64) (*Kind, error) {
	switch {
	case SectorSize(head) != 0:
		return GPT, nil
	case len(head) >= 512 && string(head[510:512]) == "\x55\xaa":
		return MBR, nil
	}
	some := make([]byte, min(size, 1<<20))
	if err := read(r, some, 0); err != nil {
		return nil, err
	}
	if len(bytes.TrimLeft(some, "\x00")) == 0 {
		return Zeros, nil
	}
	return Raw, nil
}

// read fills b from off on; what is behind the end, of a file that has shrunk meanwhile, is zero.
func read(r io.ReaderAt, b []byte, off int64) error {
	if _, err := r.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %d bytes at %#x: %w", len(b), off, err)
	}
	return nil
}

// String returns what it is, with its article: "a QCOW2 image".
func (k *Kind) String() string { return k.name }

// IsVHDX reports whether it is a VHDX image, sound or not.
func (k *Kind) IsVHDX() bool { return k.group == vhdx }

// IsDisk reports whether its bytes may be those of a disk.
func (k *Kind) IsDisk() bool { return k.group == disk }

// Advice says in an imperative what to do with the file at path; "-" is a stream. It is "" where there is nothing to say.
func (k *Kind) Advice(path string) string {
	name := "FILE"
	if path != "-" {
		name = quoted(path)
	}
	switch k.group {
	case image:
		return fmt.Sprintf("convert it to a raw disk first: qemu-img convert -O raw %s disk.raw", name)
	case vhd:
		if path == "-" { // its begin has not told
			return "-f vhd reads it as that"
		}
		return fmt.Sprintf("mount it read-only, or convert it first: vhdxfs convert %s disk.vhdx", terminal.Shell(name))
	case compressed:
		if path == "-" {
			return "decompress it first: put " + k.tool + " into the pipe"
		}
		return fmt.Sprintf("decompress it first: %s %s >disk", k.tool, name)
	case archive:
		return fmt.Sprintf("unpack it first: %s %s", k.tool, name)
	}
	switch k {
	case DamagedVHDX:
		return fmt.Sprintf("run vhdxfs check %s; vhdxfs convert --skip-errors copies what is readable", terminal.Shell(name))
	case GPT, MBR:
		return fmt.Sprintf("attach a raw disk with: losetup --find --show --partscan %s", terminal.Shell(name))
	}
	return ""
}

// NotVHDX is what is said of the file at path where a VHDX image is wanted.
func (k *Kind) NotVHDX(path string) string {
	looks := "it looks like " + k.name
	switch k {
	case DamagedVHDX:
		looks = "its file type identifier is missing, but it has other parts of a VHDX image"
		return looks + "; " + k.Advice(path)
	case Raw:
		return "not a VHDX file, nor another image that vhdxfs knows; if it is a raw disk, use it as it is, or vhdxfs convert makes a VHDX file of it"
	case Empty:
		looks = "it is " + k.name
	case Zeros:
		looks = "it begins with " + k.name
	}
	msg := "not a VHDX file: " + looks
	if advice := k.Advice(path); advice != "" {
		msg += "; " + advice
	}
	return msg
}

// quoted returns path as a shell takes it.
func quoted(path string) string {
	plain := func(r rune) bool {
		return r < 0x80 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:,@%=~", r))
	}
	switch {
	case path != "" && strings.IndexFunc(path, func(r rune) bool { return !plain(r) }) < 0:
		return path
	case strings.IndexFunc(path, func(r rune) bool { return !strconv.IsPrint(r) }) >= 0:
		return "FILE" // no terminal should be told to print it
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
