package vhdx

import (
	"context"
	"time"
)

// A pace bounds how fast something is done. The zero value does not.
type pace struct {
	rate int64 // bytes in a second
	next time.Time
}

// wait returns when n bytes are no more than the rate allows since the call before, or with the cause of the end of ctx.
func (p *pace) wait(ctx context.Context, n int64) error {
	if p.rate <= 0 || n <= 0 {
		return nil
	}
	if now := time.Now(); p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	t := time.NewTimer(time.Until(p.next))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
