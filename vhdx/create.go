package vhdx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"vhdxfs/internal/ondisk"
)

const (
	// DefaultLogSize is the length in bytes of a new image's log, that of Windows too.
	DefaultLogSize = 1 * mib
	maxLogSize     = 4096*mib - mib // a 32-bit field holds it

	// DefaultCreator is the Creator field of a new image.
	DefaultCreator = "vhdxfs"

	metadataRegionSize = 1 * mib
	firstItemOffset    = metadataTableSize // of the region
)

// CreateOptions describes a new image. Sizes are in bytes; zero values choose the default.
type CreateOptions struct {
	Size               int64    // of the virtual disk: a multiple of the logical sector size up to 64 TiB
	Type               DiskType // Dynamic, the default, or Fixed
	BlockSize          int64    // default: see DefaultBlockSize
	LogicalSectorSize  int64    // default 512
	PhysicalSectorSize int64    // default 4096
	LogSize            int64    // default DefaultLogSize
	Creator            string   // default DefaultCreator
	ZeroBlocks         bool     // blocks of a dynamic disk begin in state ZERO instead of NOT_PRESENT
}

// DefaultBlockSize returns the block size for a disk of the given size, both in bytes: small for small disks,
// where a large block would waste much, and for large ones 32 MiB, as Windows has it.
func DefaultBlockSize(diskSize int64) int64 {
	b := int64(minBlockSize)
	for b < 32*mib && diskSize > b<<10 {
		b <<= 1
	}
	return b
}

// withDefaults returns the options with every default filled in, or says what is wrong with them.
func (o CreateOptions) withDefaults() (CreateOptions, error) {
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.BlockSize, DefaultBlockSize(o.Size))
	def(&o.LogicalSectorSize, 512)
	def(&o.PhysicalSectorSize, 4096)
	def(&o.LogSize, DefaultLogSize)
	if o.Type == "" {
		o.Type = Dynamic
	}
	if o.Creator == "" {
		o.Creator = DefaultCreator
	}
	switch b := o.BlockSize; {
	case o.Type != Dynamic && o.Type != Fixed:
		return o, fmt.Errorf("type %q; it can be dynamic or fixed", o.Type)
	case b < minBlockSize || b > maxBlockSize || b&(b-1) != 0:
		return o, fmt.Errorf("block size %d; it is a power of two from 1 MiB to 256 MiB", b)
	case o.LogicalSectorSize != 512 && o.LogicalSectorSize != 4096:
		return o, fmt.Errorf("logical sector size %d; it is 512 or 4096", o.LogicalSectorSize)
	case o.PhysicalSectorSize != 512 && o.PhysicalSectorSize != 4096:
		return o, fmt.Errorf("physical sector size %d; it is 512 or 4096", o.PhysicalSectorSize)
	case o.Size <= 0 || o.Size > maxDiskSize || o.Size%o.LogicalSectorSize != 0:
		return o, fmt.Errorf("disk size %d; it is a multiple of the logical sector size, %d, up to 64 TiB", o.Size, o.LogicalSectorSize)
	case o.LogSize < mib || o.LogSize%mib != 0 || o.LogSize > maxLogSize:
		return o, fmt.Errorf("log size %d; it is a multiple of 1 MiB, from 1 MiB to 4095 MiB", o.LogSize)
	case len(encodeUTF16(o.Creator)) > creatorSize:
		return o, fmt.Errorf("creator %q is longer than 256 characters", o.Creator)
	case o.ZeroBlocks && o.Type == Fixed:
		return o, errors.New("the blocks of a fixed disk are present; they cannot begin in state ZERO")
	}
	return o, nil
}

// Create makes a new image at path, which must not exist. Until the image is complete and on stable media, the
// file has no signature, so that what a crash leaves behind opens as nothing. On failure the file is removed.
func Create(path string, o CreateOptions) error {
	o, err := o.withDefaults()
	if err != nil {
		return err
	}
	f, err := openFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s exists; it is left as it is", path)
		}
		return err
	}
	err = o.write(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("create %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// A layout says where the parts of a new image are: log, metadata, BAT and blocks, one behind the other.
type layout struct {
	geo         geometry
	metadataOff int64
	batOff      int64
	batSize     int64
	dataOff     int64
	end         int64 // size of the file
}

func (o *CreateOptions) layout() layout {
	l := layout{geo: newGeometry(o.Size, o.BlockSize, o.LogicalSectorSize, false)}
	l.metadataOff = headerSectionSize + o.LogSize
	l.batOff = l.metadataOff + metadataRegionSize
	l.batSize = roundUp(l.geo.batEntries()*batEntrySize, mib)
	l.dataOff = l.batOff + l.batSize
	l.end = l.dataOff
	if o.Type == Fixed {
		l.end += l.geo.payloadBlocks() * o.BlockSize
	}
	return l
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// write fills the empty file f.
func (o *CreateOptions) write(f *osFile) error {
	l := o.layout()
	if err := o.reserve(f, l); err != nil {
		return err
	}
	table := encodeRegionTable([]region{
		{GUID: batRegionGUID, Offset: uint64(l.batOff), Length: uint32(l.batSize), Flags: regionRequired},
		{GUID: metadataRegionGUID, Offset: uint64(l.metadataOff), Length: metadataRegionSize, Flags: regionRequired},
	})
	for _, off := range regionTableOffsets {
		if _, err := f.WriteAt(table[:], off); err != nil {
			return err
		}
	}
	h := header{
		FileWriteGUID: uuid.New(),
		DataWriteGUID: uuid.New(),
		Version:       headerVersion,
		LogLength:     uint32(o.LogSize),
		LogOffset:     headerSectionSize,
	}
	for _, off := range headerOffsets {
		h.SequenceNumber++
		if _, err := f.WriteAt(h.encode()[:], off); err != nil {
			return err
		}
	}
	if err := o.writeMetadata(f, l); err != nil {
		return err
	}
	if err := o.writeBAT(f, l); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	identifier := append([]byte(identifierSignature), encodeUTF16(o.Creator)...)
	if _, err := f.WriteAt(identifier, 0); err != nil {
		return err
	}
	return f.Sync()
}

// reserve gives the file its size. A fixed disk gets its space now, where the file system can promise it.
func (o *CreateOptions) reserve(f *osFile, l layout) error {
	if o.Type == Fixed {
		if err := f.Allocate(0, l.end); !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
			return err
		}
	}
	return f.Truncate(l.end)
}

func (o *CreateOptions) writeMetadata(f *osFile, l layout) error {
	flags := uint32(0)
	if o.Type == Fixed {
		flags = paramLeaveBlockAllocated
	}
	id := make([]byte, ondisk.GUIDSize)
	ondisk.PutGUID(id, uuid.New())
	return writeMetadata(f, l.metadataOff, []newItem{
		{fileParametersGUID, le.AppendUint32(le.AppendUint32(nil, uint32(o.BlockSize)), flags)},
		{diskSizeGUID, le.AppendUint64(nil, uint64(o.Size))},
		{diskIDGUID, id},
		{logicalSectorSizeGUID, le.AppendUint32(nil, uint32(o.LogicalSectorSize))},
		{physicalSectorSizeGUID, le.AppendUint32(nil, uint32(o.PhysicalSectorSize))},
	})
}

// A newItem is a known metadata item to be written.
type newItem struct {
	id   uuid.UUID
	data []byte
}

// writeMetadata writes a metadata region at file offset off: the table, and the items one behind the other.
func writeMetadata(f File, off int64, items []newItem) error {
	var table []metadataItem
	var data []byte
	for _, it := range items {
		table = append(table, metadataItem{
			ID:     it.id,
			Offset: uint32(firstItemOffset + len(data)),
			Length: uint32(len(it.data)),
			Flags:  knownItems[it.id].flags,
		})
		data = append(data, it.data...)
	}
	if _, err := f.WriteAt(encodeMetadataTable(table)[:], off); err != nil {
		return err
	}
	_, err := f.WriteAt(data, off+firstItemOffset)
	return err
}

// writeBAT writes the BAT, unless all of it is zero as the file is already.
func (o *CreateOptions) writeBAT(f File, l layout) error {
	var first, step batEntry // of block 0, and what each further block adds
	switch {
	case o.Type == Fixed:
		first, step = newBATEntry(FullyPresent, l.dataOff), batEntry(o.BlockSize)
	case o.ZeroBlocks:
		first = newBATEntry(Zero, 0)
	default:
		return nil
	}
	buf := make([]byte, 0, 1*mib)
	entries := l.geo.batEntries()
	for i := int64(0); i < entries; {
		buf = buf[:0]
		start := i
		for ; i < entries && len(buf) < cap(buf); i++ {
			e := batEntry(0)
			if b, bitmap := l.geo.entry(i); !bitmap {
				e = first + batEntry(b)*step
			}
			buf = le.AppendUint64(buf, uint64(e))
		}
		if _, err := f.WriteAt(buf, l.batOff+start*batEntrySize); err != nil {
			return err
		}
	}
	return nil
}
