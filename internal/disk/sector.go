package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"vhdxfs/internal/content"
)

// findSectors finds out the size of the logical sectors of a raw disk: by its GPT, which counts in them, or else by the
// device.
func (d *Disk) findSectors() error {
	table, err := gptSectors(d)
	if err != nil {
		return fmt.Errorf("read %s: %w", d.Path, err)
	}
	device := deviceSectors(d.raw)
	if table != 0 && device != 0 && table != device {
		d.Warning = fmt.Sprintf("%s has sectors of %d bytes, but its GPT counts in sectors of %d", d.Path, device, table)
	}
	if d.SectorSize = table; table == 0 {
		d.SectorSize = device
	}
	return nil
}

// gptSectors returns the size of the sectors in which the GPT of a disk counts, and 0 where there is none.
func gptSectors(r io.ReaderAt) (int64, error) {
	head := make([]byte, 8<<10)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	return content.SectorSize(head[:n]), nil
}

// deviceSectors returns the size of the logical sectors of a block device, and 0 of a file, or where it is none that an
// image can have.
func deviceSectors(f *os.File) int64 {
	st, err := f.Stat()
	if err != nil || st.Mode().IsRegular() {
		return 0
	}
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err != nil || n != 512 && n != 4096 {
		return 0
	}
	return int64(n)
}

// DeviceSectors returns the size in bytes of the logical sectors of the block device at path, and 0 where there is none.
func DeviceSectors(path string) int64 {
	st, err := os.Stat(path)
	if err != nil || st.Mode().Type() != os.ModeDevice {
		return 0
	}
	f, err := openFile(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	return deviceSectors(f)
}

// Partitioned reports whether the disk has a partition table, GPT or MBR, whose places count in logical sectors.
func (d *Disk) Partitioned() bool {
	head := make([]byte, 8<<10)
	n, _ := d.ReadAt(head, 0)
	head = head[:n]
	if content.SectorSize(head) != 0 {
		return true
	}
	return len(head) >= 512 && string(head[510:512]) == "\x55\xaa"
}
