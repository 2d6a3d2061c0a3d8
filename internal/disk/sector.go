package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/content"
	"github.com/vhdxfs/vhdxfs/internal/partition"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// findSectors finds out the size of the logical sectors of a raw disk: by its partition table, which counts in them, or
// else by the device.
func (d *Disk) findSectors() error {
	table, err := TableSectors(d, d.size)
	if err != nil {
		return fmt.Errorf("read %s: %w", d.Path, err)
	}
	device := deviceSectors(d.raw)
	if table != 0 && device != 0 && table != device {
		d.Warning = fmt.Sprintf("%s has sectors of %d bytes, but its partition table counts in sectors of %d bytes, which are used", d.Path, device, table)
	}
	if d.SectorSize = table; table == 0 {
		d.SectorSize = device
	}
	return nil
}

// TableSectors returns the size in bytes of the sectors in which the partition table of a raw disk of size bytes counts,
// and 0 where there is none, or none that tells.
func TableSectors(r io.ReaderAt, size int64) (int64, error) {
	head := make([]byte, min(size, 8<<10))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if n := content.SectorSize(head); n != 0 {
		return n, nil
	}
	return partition.MBRSectorSize(r, size), nil
}

// deviceSectors returns the size of the logical sectors of a block device, and 0 of a file, or where it is none that an
// image can have.
func deviceSectors(f imagefile.File) int64 {
	fd, ok := f.Fd()
	if !ok || !f.IsDevice() {
		return 0
	}
	n, err := unix.IoctlGetInt(int(fd), unix.BLKSSZGET)
	if err != nil || n != 512 && n != 4096 {
		return 0
	}
	return int64(n)
}

// DeviceSectors returns the size in bytes of the logical sectors of the block device at path, and 0 where there is none.
func DeviceSectors(path string) int64 {
	f, err := imagefile.Open(path, os.O_RDONLY)
	if err != nil {
		return 0
	}
	defer f.Close()
	return deviceSectors(f)
}
