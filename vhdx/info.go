package vhdx

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/lease"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// Info describes an open image for people and programs. Sizes and offsets are in bytes.
type Info struct {
	Path                string         `json:"path"`
	FileSize            int64          `json:"file_size"`
	Creator             string         `json:"creator"`
	Type                DiskType       `json:"type"`
	DiskSize            int64          `json:"disk_size"`
	BlockSize           int64          `json:"block_size"`
	LogicalSectorSize   int64          `json:"logical_sector_size"`
	PhysicalSectorSize  int64          `json:"physical_sector_size"` // 0 where the image does not say
	DiskID              uuid.UUID      `json:"disk_id"`              // page 83 data; zero where the image does not say
	LeaveBlockAllocated bool           `json:"leave_block_allocated"`
	CurrentHeader       int            `json:"current_header"` // 1 or 2
	Headers             [2]HeaderInfo  `json:"headers"`
	Log                 LogInfo        `json:"log"`
	Lease               *LeaseInfo     `json:"lease,omitempty"`      // of the last writer that took one
	CurrentRegionTable  int            `json:"current_region_table"` // 1 or 2
	Regions             []RegionInfo   `json:"regions"`
	Metadata            []MetadataInfo `json:"metadata"`
	BATEntries          int64          `json:"bat_entries"`
	ChunkRatio          int64          `json:"chunk_ratio"` // payload blocks for each sector bitmap block
	Blocks              BlockCounts    `json:"blocks"`
	AllocatedBytes      int64          `json:"allocated_bytes"` // of payload blocks, in this file alone
	FreeBytes           int64          `json:"free_bytes"`      // inside the file, used by nothing
	Parent              *ParentInfo    `json:"parent,omitempty"`
	Warnings            []string       `json:"warnings,omitempty"`
}

// HeaderInfo describes one copy of the header (MS-VHDX 2.2.2).
type HeaderInfo struct {
	Valid          bool      `json:"valid"`
	Problem        string    `json:"problem,omitempty"` // why it is not valid
	SequenceNumber uint64    `json:"sequence_number"`
	FileWriteGUID  uuid.UUID `json:"file_write_guid"`
	DataWriteGUID  uuid.UUID `json:"data_write_guid"`
	LogGUID        uuid.UUID `json:"log_guid"`
	LogVersion     uint16    `json:"log_version"`
	Version        uint16    `json:"version"`
}

// LeaseInfo describes the lease of a host that writes the image, or has written it.
type LeaseInfo struct {
	State LeaseState `json:"state"`
	Host  string     `json:"host"` // the first part of its name, at most eight characters
	Since time.Time  `json:"since"`
}

// LeaseState says what became of a lease.
type LeaseState string

// The states of a lease.
const (
	LeaseHeld      LeaseState = "held"       // the host writes the image, or has not closed it
	LeaseReleased  LeaseState = "released"   // the host has closed the image
	LeaseTakenOver LeaseState = "taken over" // this mount had it, and the host has it now
)

// LogInfo describes the log (MS-VHDX 2.3).
type LogInfo struct {
	State   LogState `json:"state"`
	Offset  int64    `json:"offset"`
	Length  int64    `json:"length"`
	Entries int      `json:"entries"` // of the active sequence
	Updates int64    `json:"updates"` // descriptors in them
}

// LogState says whether an image was closed cleanly.
type LogState string

// The states of a log.
const (
	LogClean    LogState = "clean"              // there was nothing to replay
	LogReplayed LogState = "replayed in memory" // the file still holds a log to replay
	LogInUse    LogState = "in use"             // the image is being written
)

// RegionInfo describes a region table entry (MS-VHDX 2.2.3.2).
type RegionInfo struct {
	Name     string    `json:"name"` // "BAT", "metadata" or "unknown"
	GUID     uuid.UUID `json:"guid"`
	Offset   uint64    `json:"offset"` // of an optional region it may be any
	Length   int64     `json:"length"`
	Required bool      `json:"required"`
}

// MetadataInfo describes a metadata item (MS-VHDX 2.6).
type MetadataInfo struct {
	Name        string    `json:"name"` // such as "file parameters", or "unknown"
	GUID        uuid.UUID `json:"guid"`
	Offset      int64     `json:"offset"` // in the file
	Length      int64     `json:"length"`
	User        bool      `json:"user"`
	VirtualDisk bool      `json:"virtual_disk"`
	Required    bool      `json:"required"`
}

// BlockCounts counts the BAT entries that describe something, by state.
type BlockCounts struct {
	NotPresent       int64 `json:"not_present"`
	Undefined        int64 `json:"undefined"`
	Zero             int64 `json:"zero"`
	Unmapped         int64 `json:"unmapped"`
	FullyPresent     int64 `json:"fully_present"`
	PartiallyPresent int64 `json:"partially_present"`
	SectorBitmaps    int64 `json:"sector_bitmaps"`
}

// add counts n more payload blocks in the given state.
func (c *BlockCounts) add(s ondisk.BlockState, n int64) {
	switch s {
	case ondisk.NotPresent:
		c.NotPresent += n
	case ondisk.Undefined:
		c.Undefined += n
	case ondisk.Zero:
		c.Zero += n
	case ondisk.Unmapped, ondisk.UnmappedDraft:
		c.Unmapped += n
	case ondisk.FullyPresent:
		c.FullyPresent += n
	case ondisk.PartiallyPresent:
		c.PartiallyPresent += n
	}
}

// ParentInfo describes a differencing disk's parent locator (MS-VHDX 2.6.2.6) and the parent that was found.
type ParentInfo struct {
	Linkage  uuid.UUID  `json:"parent_linkage"`
	Linkage2 *uuid.UUID `json:"parent_linkage2,omitempty"`

	RelativePath      string `json:"relative_path,omitempty"`
	VolumePath        string `json:"volume_path,omitempty"`
	AbsoluteWin32Path string `json:"absolute_win32_path,omitempty"`

	Image   *Info  `json:"image"`             // the parent itself; nil if it was not found
	Missing string `json:"missing,omitempty"` // its name, where it was not found; see Options.MissingParent
}

// Info describes the image and its chain, as they are now. It waits for the BAT to be validated; see Image.Validated.
func (im *Image) Info() *Info {
	_ = im.Validated() // reads and changes return its error where it concerns them
	w := im.writer
	if w == nil {
		in := im.current().info()
		if IsMixed(im.DataWriteGUID()) {
			in.Warnings = append(in.Warnings, ErrMixed.Error())
		}
		return in
	}
	w.space.mu.Lock()
	defer w.space.mu.Unlock()
	in := im.current().info()
	in.FileSize = w.space.size
	if in.Headers[in.CurrentHeader-1].LogGUID != uuid.Nil {
		in.Log.State = LogInUse
	}
	if l := w.lease.Load(); l != nil {
		if taken, ok := errors.AsType[*TakenOverError](l.Err()); ok {
			in.Lease = &LeaseInfo{State: LeaseTakenOver, Host: taken.Epoch.Host, Since: taken.Epoch.Since}
		}
	}
	return in
}

func (l *layer) info() *Info {
	l.mu.Lock()
	headers, counts, items := l.headers, l.counts, slices.Clone(l.items)
	l.mu.Unlock()
	in := &Info{
		Path:                l.path,
		FileSize:            l.fileSize,
		Creator:             l.creator,
		Type:                l.diskType(),
		DiskSize:            l.geo.DiskSize,
		BlockSize:           l.geo.BlockSize,
		LogicalSectorSize:   l.geo.SectorSize,
		PhysicalSectorSize:  int64(l.meta.physicalSectorSize),
		DiskID:              l.meta.diskID,
		LeaveBlockAllocated: l.meta.leaveBlockAllocated,
		CurrentHeader:       headers.current + 1,
		Log:                 l.logInfo(),
		CurrentRegionTable:  l.tables.current + 1,
		BATEntries:          l.geo.BATEntries(),
		ChunkRatio:          l.geo.ChunkRatio(),
		Blocks:              counts,
		AllocatedBytes:      l.allocated(),
		FreeBytes:           l.space.free(),
		Parent:              l.parentInfo(),
	}
	if e, ok := lease.EpochOf(headers.header().FileWriteGUID); ok {
		in.Lease = &LeaseInfo{State: LeaseHeld, Host: e.Host, Since: e.Since}
		if e.Released {
			in.Lease.State = LeaseReleased
		}
	}
	for i, h := range headers.copies {
		in.Headers[i] = HeaderInfo{
			Valid:          headers.err[i] == nil,
			SequenceNumber: h.SequenceNumber,
			FileWriteGUID:  h.FileWriteGUID,
			DataWriteGUID:  h.DataWriteGUID,
			LogGUID:        h.LogGUID,
			LogVersion:     h.LogVersion,
			Version:        h.Version,
		}
		if err := headers.err[i]; err != nil {
			in.Headers[i].Problem = ondisk.Finding(err).Error()
		}
	}
	for _, r := range l.tables.regions {
		in.Regions = append(in.Regions, RegionInfo{
			Name: r.Name(), GUID: r.GUID, Offset: r.Offset, Length: int64(r.Length), Required: r.Flags&ondisk.RegionRequired != 0,
		})
	}
	for _, m := range items {
		in.Metadata = append(in.Metadata, MetadataInfo{
			Name: m.Name(), GUID: m.ID, Offset: l.metadataOffset() + int64(m.Offset), Length: int64(m.Length),
			User: m.User(), VirtualDisk: m.Flags&ondisk.ItemIsVirtualDisk != 0, Required: m.Flags&ondisk.ItemIsRequired != 0,
		})
	}
	in.Warnings = l.warningTexts()
	return in
}

// Warnings returns what was odd about the image itself when it was opened. What is found later is logged.
func (im *Image) Warnings() []string {
	l := im.current()
	list := l.warningTexts()
	if l.late != nil {
		list = list[:l.late.warned]
	}
	return list
}

func (l *layer) warningTexts() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []string
	for _, w := range l.warnings {
		list = append(list, fmt.Sprintf("%s at %#x: %s", w.Structure, w.Offset, w.Message))
	}
	return list
}

// Type returns the type of the virtual disk.
func (im *Image) Type() DiskType { return im.current().diskType() }

// Replayed reports whether the file holds a log that was replayed in memory alone.
func (im *Image) Replayed() bool { return im.current().sequence != nil }

// SectorSize returns the size of the disk's logical sectors in bytes.
func (im *Image) SectorSize() int64 { return im.current().geo.SectorSize }

func (l *layer) diskType() DiskType {
	switch {
	case l.meta.hasParent:
		return Differencing
	case l.meta.leaveBlockAllocated:
		return Fixed
	}
	return Dynamic
}

func (l *layer) logInfo() LogInfo {
	log := l.log()
	in := LogInfo{State: LogClean, Offset: log.Offset, Length: log.Length}
	if l.sequence != nil {
		in.State, in.Entries, in.Updates = LogReplayed, l.sequence.Entries, l.sequence.Updates
	}
	return in
}

// A toldInfo is what was told of a parent, and how many changes parents had seen by then.
type toldInfo struct {
	*Info
	changes int64
}

// parentChanges counts the changes of parents that a merge of a disk in use makes known.
var parentChanges atomic.Int64

// asParent returns what info tells of a parent. Nothing but a merge changes a parent, so that it is put together once, when the
// BATs below it are validated: a chain can be long.
func (l *layer) asParent() *Info {
	changes := parentChanges.Load()
	if in := l.told.Load(); in != nil && in.changes == changes {
		return in.Info
	}
	if a := l.owner.Load(); a != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
	}
	in := l.info()
	for p := l; p.wasValidated(); p = p.parent() {
		if p.parent() == nil {
			l.told.Store(&toldInfo{in, changes})
			break
		}
	}
	return in
}

func (l *layer) parentInfo() *ParentInfo {
	l.mu.Lock()
	p := l.meta.locator
	l.mu.Unlock()
	if p == nil || l.parent() == nil && l.unfound == nil {
		return nil
	}
	in := &ParentInfo{
		Linkage:           p.Linkage,
		RelativePath:      p.Values[ondisk.KeyRelativePath],
		VolumePath:        p.Values[ondisk.KeyVolumePath],
		AbsoluteWin32Path: p.Values[ondisk.KeyAbsolutePath],
	}
	if l.parent() != nil {
		in.Image = l.parent().asParent()
	} else {
		in.Missing = l.unfound.name()
	}
	if p.Linkage2 != uuid.Nil {
		in.Linkage2 = &p.Linkage2
	}
	return in
}
