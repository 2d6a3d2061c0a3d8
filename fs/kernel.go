package fs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/erofs"
	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// The kernel can read a disk without the server if nothing changes the disk: package erofs makes it a file whose chunks lie in
// the image and its parents, and FUSE passes what is read from disk.raw through to that file. The server still answers all but
// READ.
//
// The kernel has three rules for such a file. None of them has a way around, so Options.Kernel is not the default:
//
//   - It cannot be opened with O_DIRECT, and a program that has it open cannot turn that on. An OPEN answered with ESTALE
//     leads the kernel to look the name up again, and could so lead it to another file; but not through a bind mount of
//     disk.raw, and not where it has no OPEN to ask, as for fcntl(2) and LOOP_SET_DIRECT_IO.
//   - All that have it open read it so. A program that opens it for O_DIRECT cannot be served beside the others.
//   - What was opened can be read until it is closed, also when the server, and with it the locks on the image, is gone.

// A KernelFile is a file that the kernel is to read by itself, and to pass reads of disk.raw through to.
type KernelFile struct {
	erofs.Geometry
	Device  int   // descriptor of the FUSE connection, which has been initialized
	Devices []int // descriptors of the files in which the chunks lie
	Runs    int   // descriptor from which the runs are read
}

// kernelReads says how disk.raw is read.
type kernelReads struct {
	id  int32  // of the file to which reads are passed through; 0 is none
	why string // why there is none, although it was asked for
}

// String returns the value of the attribute.
func (k *kernelReads) String() string {
	switch {
	case k.id != 0:
		return "on"
	case k.why != "":
		return "off: " + k.why
	}
	return "off"
}

// setUp has the kernel read the disk by itself, if it can. Until that has returned, no request may be answered.
func (k *kernelReads) setUp(disk Disk, o *Options, device int) {
	if !o.Kernel {
		return
	}
	var err error
	if k.id, err = passThrough(disk, o, device); err != nil {
		k.id, k.why = 0, err.Error()
		o.Log.WithError(err).Info("the kernel does not read the image by itself")
	}
}

func passThrough(disk Disk, o *Options, device int) (id int32, err error) {
	defer fault.Catch(&err) // the server can read what this cannot
	switch {
	case disk.Writable():
		return 0, errors.New("the mount is not read-only")
	case o.DirectIO:
		return 0, errors.New("option direct_io")
	}
	p, err := newKernelPlan(disk)
	if err != nil {
		return 0, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	sent := make(chan error, 1)
	go func() {
		var err error
		defer func() { sent <- err }()
		defer fault.Catch(&err)
		defer w.Close()
		err = p.send(w)
	}()
	id, err = o.Mounter.PassThrough(KernelFile{Geometry: p.Geometry, Device: device, Devices: p.devices, Runs: int(r.Fd())})
	r.Close() // ends the sender, which has no reader any more
	if serr := <-sent; serr != nil && !errors.Is(serr, unix.EPIPE) {
		err = errors.Join(serr, err)
	}
	return id, err
}

// A kernelPlan says how a disk is mapped.
type kernelPlan struct {
	erofs.Geometry
	disk    Disk
	devices []int
	numbers map[int]uint16 // of the devices, by their descriptors; the first is 1
}

// newKernelPlan goes through the map of the disk and chooses the largest chunks, and the largest unit of places, that
// it can be told in.
func newKernelPlan(disk Disk) (*kernelPlan, error) {
	p := &kernelPlan{
		Geometry: erofs.Geometry{Size: disk.Size(), BlockBits: erofs.MaxBlockBits, ChunkBits: erofs.MaxChunkBits},
		disk:     disk,
		numbers:  make(map[int]uint16),
	}
	if err := p.Check(); err != nil {
		return nil, err
	}
	return p, walkPieces(disk, p.fit)
}

// fit makes the chunks and the unit small enough for a piece of the disk.
func (p *kernelPlan) fit(e piece) error {
	p.ChunkBits = min(p.ChunkBits, bits.TrailingZeros64(uint64(e.off))) // 64 for the first piece
	unit := p.ChunkBits
	if e.fd >= 0 {
		unit = min(unit, bits.TrailingZeros64(uint64(e.fileOff)))
		if p.numbers[e.fd] == 0 {
			if len(p.devices) == erofs.MaxDevices {
				return fmt.Errorf("more than %d images in the chain", erofs.MaxDevices)
			}
			p.devices = append(p.devices, e.fd)
			p.numbers[e.fd] = uint16(len(p.devices))
		}
	}
	if unit < p.BlockBits {
		p.BlockBits = erofs.MinBlockBits
	}
	if err := p.Check(); err != nil { // at once: there may be as many pieces as sectors
		return err
	}
	if unit < p.BlockBits {
		return fmt.Errorf("a piece of the disk at byte %d of a file", e.fileOff)
	}
	return nil
}

// send writes the runs to w.
func (p *kernelPlan) send(w io.Writer) error {
	out := bufio.NewWriterSize(w, 64<<10)
	var b [erofs.RunSize]byte
	err := walkPieces(p.disk, func(e piece) error {
		n := (e.length-1)>>p.ChunkBits + 1
		r := erofs.Run{Chunks: uint32(n)} // at most MaxChunks
		if e.fd >= 0 {
			block := e.fileOff >> p.BlockBits
			if block > 1<<32-1 {
				return fmt.Errorf("a file is longer than %d TiB", (int64(1)<<(32+p.BlockBits))>>40)
			}
			r.Device, r.Block = p.numbers[e.fd], uint32(block)
		}
		_, err := out.Write(r.Append(b[:0]))
		return err
	})
	if err != nil {
		return err
	}
	return out.Flush()
}

// A piece is a part of the disk that lies together in one file, or is a hole.
type piece struct {
	off, length int64 // bytes
	fd          int   // of the file; -1 is a hole
	fileOff     int64
}

// follows reports whether q goes on where p ends, so that both are one.
func (p piece) follows(q piece) bool {
	return p.fd == q.fd && (p.fd < 0 || p.fileOff+p.length == q.fileOff)
}

// How much of the disk is looked at in one step, in bytes: between the two, more where there are few pieces. It bounds the
// extents in memory where each has one sector.
const (
	minWalk = 32 << 20
	maxWalk = 256 << 20
)

// walkPieces calls do for each piece of the disk, in order. Each is as long as it can be.
func walkPieces(disk Disk, do func(piece) error) error {
	var extents []vhdx.Extent
	var p piece // what do was not called for yet
	step := int64(minWalk)
	for off := int64(0); off < disk.Size(); off += step {
		if len(extents) == 1 && step < maxWalk {
			step *= 2
		} else if len(extents) > 1 {
			step = minWalk
		}
		var err error
		epoch := disk.BeginRead()
		extents, err = disk.Resolve(extents[:0], off, min(step, disk.Size()-off))
		disk.EndRead(epoch)
		if err != nil {
			return err
		}
		for _, e := range extents {
			q := piece{e.DiskOff, e.Len, -1, 0}
			if e.File != nil {
				fd, ok := e.Fd()
				if !ok {
					return errors.New("the log of the image was replayed over data in memory")
				}
				q.fd, q.fileOff = int(fd), e.FileOff
			}
			switch {
			case p.length == 0:
				p = q
			case p.follows(q):
				p.length += q.length
			default:
				if err := do(p); err != nil {
					return err
				}
				p = q
			}
		}
	}
	return do(p)
}
