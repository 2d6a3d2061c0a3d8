package cli

import (
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/loop"
	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/internal/partition"
)

// lookPatience is how long list waits for what is on the disks.
const lookPatience = 2 * time.Second

// lookInside completes the mounts by the size of their disks, and by the file systems on their devices. A server that
// hangs leaves its part out; the processes that wait for it end when it does.
func lookInside(list []*active.Mount) {
	var looking sync.WaitGroup
	for _, m := range list {
		if m.State != active.Serving {
			continue
		}
		found := make(chan func(), 1)
		go func() {
			defer fault.Catch(new(error))
			found <- look(m)
		}()
		looking.Go(func() {
			defer fault.Catch(new(error))
			select {
			case complete := <-found:
				complete()
			case <-time.After(lookPatience):
			}
		})
	}
	looking.Wait()
}

// look returns a function that completes m by what was found.
func look(m *active.Mount) func() {
	var size int64
	if v, err := mounts.Attribute(m.MountPoint, "disk_size"); err == nil && m.Partition == 0 {
		size, _ = strconv.ParseInt(v, 10, 64) // 0 where it is not known
	}
	contents := make([]partition.Content, len(m.Devices))
	for i, d := range m.Devices {
		contents[i] = deviceContents(d)
	}
	return func() {
		m.DiskSize = size
		for i := range m.Devices {
			setContents(&m.Devices[i], contents[i])
		}
	}
}

// deviceContents reads what is on a loop device: nothing if this user may not read it, or if it goes when the last closes it,
// which then should not be this process.
func deviceContents(d loop.Device) partition.Content {
	if d.Going() {
		return partition.Content{}
	}
	f, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return partition.Content{}
	}
	defer f.Close()
	return partition.Inside(f, d.Size, d.SectorSize)
}

func setContents(d *loop.Device, c partition.Content) {
	for _, v := range c.Volumes {
		content := loop.Content{FileSystem: v.FileSystem, Label: v.Label}
		if v.Number == 0 {
			d.Content = content
		}
		for i := range d.Partitions {
			if d.Partitions[i].Number == v.Number {
				d.Partitions[i].Content = content
			}
		}
	}
}
