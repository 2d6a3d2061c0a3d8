package vhdx

import "sync"

// blockLocks serialise what happens to a payload block: writes into a present block share its lock, and a change
// of its BAT entry or of the meaning of its bits holds it alone. Blocks share locks, so a goroutine never takes two.
// Reads take none.
type blockLocks [256]sync.RWMutex

func (l *blockLocks) of(block int64) *sync.RWMutex { return &l[uint64(block)%uint64(len(l))] }
