// Package cache keeps 4 KiB pages of metadata in memory: of the BAT and of sector bitmap blocks, both of
// which can be far larger than memory should hold. A page is read when it is first asked for, and given up
// again when the cache is over its bound and the page has not been used for a while.
//
//	Cache   the bound, and the clock that decides which page goes
//	Span    a run of pages of one file: a BAT region, or one sector bitmap block
//	Page    512 words of 64 bits, each read and written atomically
//
// Looking up a cached page takes two atomic loads, a striped count of the hits, and no lock. Pages known to be all zero, as most are in
// the BAT of a mostly empty disk, share one page and cost no memory.
//
// The words of pages lie in memory outside of the Go heap, which a page that is given up leaves to the next one at once. So a
// goroutine that has not pinned a page looks at it inside Word or Read, which look again if it was given up meanwhile.
package cache
