package cli

import (
	"context"
	"time"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// awaitJob shows how far work is that a mount does, and returns its state when it has ended. It asks for the first time after wait.
// If ctx ends before, it calls stop, and waits on; if the work then ends before it is done, the error is the cause of that.
func awaitJob[R any](ctx context.Context, p *progress, wait time.Duration, ask func() (*mounts.Job[R], error), stop func() error) (*mounts.Job[R], error) {
	var shown mounts.Job[R]
	for stopped := false; ; wait = min(2*wait, 500*time.Millisecond) {
		select {
		case <-ctx.Done():
			if !stopped {
				stopped = true
				if err := stop(); err != nil {
					return nil, err
				}
			}
			time.Sleep(wait)
		case <-time.After(wait):
		}
		now, err := ask()
		switch {
		case err != nil:
			return nil, err
		case !now.Running && stopped && now.Error != "":
			return nil, context.Cause(ctx)
		case !now.Running:
			return now, nil
		}
		if now.Phase != shown.Phase || now.Done < shown.Done {
			p.phase(now.Phase, now.Total)
			shown.Done = 0
		}
		p.add(now.Done - shown.Done)
		shown = *now
	}
}
