package disk

import (
	"bytes"
	"fmt"
	"io"
)

// foreign are the formats that are known well enough not to be taken for raw disks: by some bytes at an offset,
// which counts from the end where it is negative.
var foreign = []struct {
	name  string
	off   int64
	bytes string
}{
	{"QCOW2", 0, "QFI\xfb"},
	{"VMDK", 0, "KDMV"},
	{"VMDK", 0, "# Disk DescriptorFile"},
	{"VHD", 0, "conectix"},
	{"VHD", -512, "conectix"},
	{"VDI", 64, "\x7f\x10\xda\xbe"},
	{"QED", 0, "QED\x00"},
}

const vhdxSignature = "vhdxfile" // MS-VHDX 2.2.1

// detect finds out the format of the file at path. What is known to be of another than those here is an error.
func detect(path string) (Format, error) {
	f, err := openFile(path)
	if err != nil {
		return Auto, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return Auto, err
	}
	holds := func(off int64, want string) (bool, error) {
		if off < 0 {
			off += size
		}
		if off < 0 || off+int64(len(want)) > size {
			return false, nil
		}
		b := make([]byte, len(want))
		if _, err := f.ReadAt(b, off); err != nil {
			return false, err
		}
		return bytes.Equal(b, []byte(want)), nil
	}
	if is, err := holds(0, vhdxSignature); err != nil || is {
		return VHDX, err
	}
	for _, x := range foreign {
		if is, err := holds(x.off, x.bytes); err != nil {
			return Auto, err
		} else if is {
			return Auto, fmt.Errorf("%s is a %s image; turn it into a raw one with qemu-img convert, or say that its format is raw to take the bytes as they are", path, x.name)
		}
	}
	return Raw, nil
}
