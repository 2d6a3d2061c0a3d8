// Package tally has a counter for what many processors count at once.
package tally

import (
	"math/rand/v2"
	"sync/atomic"
)

// stripes is how many parts a counter has, each in a cache line of its own.
const stripes = 16

// A Counter counts. Its zero value is 0, and it must not be copied. Any number of goroutines may use it at once; they
// rarely meet in the same part of it.
type Counter struct {
	stripe [stripes]struct {
		n atomic.Int64
		_ [56]byte
	}
}

// Add adds n.
func (c *Counter) Add(n int64) { c.stripe[rand.Uint32()%stripes].n.Add(n) }

// Inc adds 1.
func (c *Counter) Inc() { c.Add(1) }

// Value returns the count. Of what is added meanwhile it may miss some.
func (c *Counter) Value() (n int64) {
	for i := range c.stripe {
		n += c.stripe[i].n.Load()
	}
	return n
}
