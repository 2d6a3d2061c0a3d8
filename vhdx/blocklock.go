package vhdx

import "sync"

// blockLocks serialise what happens to a payload block: writes into a present block share its lock, and whatever
// changes its BAT entry or the meaning of its bits holds it alone. Blocks share locks, so nobody takes two.
// Reads take none.
type blockLocks [256]sync.RWMutex

func (l *blockLocks) of(block int64) *sync.RWMutex { return &l[uint64(block)%uint64(len(l))] }
