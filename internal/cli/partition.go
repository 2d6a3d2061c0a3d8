package cli

import (
	"fmt"

	mount "github.com/vhdxfs/vhdxfs/fs"
	"github.com/vhdxfs/vhdxfs/internal/partition"
)

// findPartition has disk.raw show the partition that the options name, if they do.
func (j *mountJob) findPartition(im openDisk) error {
	if j.Partition == 0 {
		return nil
	}
	p, err := partition.Get(im, im.Size(), im.SectorSize(), j.Partition)
	if err != nil {
		return fmt.Errorf("%s: %w", j.Mount.Image, err)
	}
	j.Mount.Window = &mount.Window{Partition: p.Number, Off: p.Off, Len: p.Len}
	return nil
}
