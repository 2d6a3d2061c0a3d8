package cli

import (
	"fmt"
	"strconv"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/partition"
)

// maxPartition bounds the number of a partition; the kernel has no higher ones, either.
const maxPartition = 65535

func parsePartition(p *int, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > maxPartition {
		return fmt.Errorf("give the number of a partition, such as 1")
	}
	*p = n
	return nil
}

// findPartition has disk.raw show the partition that the options name, if they do.
func (j *mountJob) findPartition(im openDisk) error {
	if j.partition == 0 {
		return nil
	}
	p, err := partition.Get(im, im.Size(), im.SectorSize(), j.partition)
	if err != nil {
		return fmt.Errorf("%s: %w", j.mount.Image, err)
	}
	j.mount.Window = &mount.Window{Partition: p.Number, Off: p.Off, Len: p.Len}
	return nil
}
