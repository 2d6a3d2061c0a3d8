package ondisk

import "fmt"

// The states of a payload block (MS-VHDX 2.5.1.1).
const (
	NotPresent       BlockState = 0 // in a differencing disk: look in the parent
	Undefined        BlockState = 1
	Zero             BlockState = 2
	Unmapped         BlockState = 3
	ReservedState    BlockState = 4
	UnmappedDraft    BlockState = 5 // "unmapped" in draft 0.95 of the format, reserved since
	FullyPresent     BlockState = 6
	PartiallyPresent BlockState = 7 // sector by sector here or in the parent
)

// The states of a sector bitmap block (MS-VHDX 2.5.1.2).
const (
	BitmapNotPresent BlockState = 0
	BitmapPresent    BlockState = 6
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
	case Unmapped, UnmappedDraft:
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

// A BATEntry is a BAT entry (MS-VHDX 2.5.1): the state in bits 0 to 2, the file offset in bits 20 to 63.
type BATEntry uint64

// The fields of a BAT entry (MS-VHDX 2.5.1).
const (
	BATStateMask    = 0x7
	BATReservedMask = 0xFFFF8
	BATOffsetMask   = ^uint64(0xFFFFF) // of the file offset in bytes, a multiple of 1 MiB
)

// NewBATEntry returns the entry of a block at the file offset fileOff, in bytes, which is a multiple of 1 MiB.
func NewBATEntry(s BlockState, fileOff int64) BATEntry { return BATEntry(uint64(fileOff) | uint64(s)) }

// State returns the state of the block, which may be a reserved one.
func (e BATEntry) State() BlockState { return BlockState(e & BATStateMask) } // #nosec G115 -- three bits

// Offset returns the file offset in bytes, as the entry has it.
func (e BATEntry) Offset() uint64 { return uint64(e) & BATOffsetMask }

// Reserved returns the reserved bits, at their place in the entry.
func (e BATEntry) Reserved() uint64 { return uint64(e) & BATReservedMask }

// FileOff returns the file offset of an entry that is followable.
func (e BATEntry) FileOff() int64 { return int64(e.Offset()) } // #nosec G115 -- Followable bounds it

// Present reports whether the entry is that of a payload block with a place in the file.
func (e BATEntry) Present() bool { return e.State() == FullyPresent || e.State() == PartiallyPresent }

// Followable reports whether the entry, that of a payload block, has a state of the format and, where the block is present,
// an offset at which a file can hold a block of that size. The scan of the BAT has checked more than that, but a program
// that may write to the file can have changed it since, and pages of the BAT are read again.
func (e BATEntry) Followable(blockSize int64) bool {
	if e.Present() {
		return e.Offset() >= HeaderSectionSize && e.Offset() <= uint64(MaxFileSize-blockSize)
	}
	return e.State() != ReservedState
}

// BlockState is the state of a payload or sector bitmap block (MS-VHDX 2.5.1).
type BlockState uint8
