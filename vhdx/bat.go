package vhdx

import "fmt"

// The states of a payload block (MS-VHDX 2.5.1.1).
const (
	NotPresent       BlockState = 0 // in a differencing disk: look in the parent
	Undefined        BlockState = 1
	Zero             BlockState = 2
	Unmapped         BlockState = 3
	reservedState    BlockState = 4
	unmappedDraft    BlockState = 5 // "unmapped" in draft 0.95 of the format, reserved since
	FullyPresent     BlockState = 6
	PartiallyPresent BlockState = 7 // sector by sector here or in the parent
)

// The states of a sector bitmap block (MS-VHDX 2.5.1.2).
const (
	bitmapNotPresent BlockState = 0
	bitmapPresent    BlockState = 6
)

// String returns the state's name in MS-VHDX, without its prefix.
func (s BlockState) String() string {
	switch s {
	case NotPresent:
		return "NOT_PRESENT"
	case Undefined:
		return "UNDEFINED"
	case Zero:
		return "ZERO"
	case Unmapped, unmappedDraft:
		return "UNMAPPED"
	case FullyPresent:
		return "FULLY_PRESENT"
	case PartiallyPresent:
		return "PARTIALLY_PRESENT"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// MarshalText makes a state read as its name in JSON.
func (s BlockState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A batEntry is a BAT entry (MS-VHDX 2.5.1): the state in bits 0 to 2, the file offset in bits 20 to 63.
type batEntry uint64

const (
	batStateMask    = 0x7
	batReservedMask = 0xFFFF8
	batOffsetMask   = ^uint64(0xFFFFF)
)

func newBATEntry(s BlockState, fileOff int64) batEntry { return batEntry(uint64(fileOff) | uint64(s)) }

func (e batEntry) state() BlockState { return BlockState(e & batStateMask) }
func (e batEntry) offset() uint64    { return uint64(e) & batOffsetMask } // file offset, bytes
func (e batEntry) reserved() uint64  { return uint64(e) & batReservedMask }

// fileOff returns the file offset of an entry that is followable.
func (e batEntry) fileOff() int64 { return int64(e.offset()) }

// present reports whether the entry is that of a payload block with a place in the file.
func (e batEntry) present() bool { return e.state() == FullyPresent || e.state() == PartiallyPresent }

// followable reports whether the entry, that of a payload block, has a state of the format and, where the block is present,
// an offset at which a file can hold a block of that size. The scan of the BAT has seen to more than that, but whoever may
// write to the file can change it since, and pages of the BAT are read again.
func (e batEntry) followable(blockSize int64) bool {
	if e.present() {
		return e.offset() >= headerSectionSize && e.offset() <= uint64(maxFileSize-blockSize)
	}
	return e.state() != reservedState
}
