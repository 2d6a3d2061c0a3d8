package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vhdxfs/vhdxfs/internal/fault"
	"github.com/vhdxfs/vhdxfs/internal/size"
)

// A progress shows on a terminal how far a command is.
type progress struct {
	out io.Writer // nil shows nothing
	bar *progressbar.ProgressBar

	name  string // of the phase
	total int64  // bytes, -1 if unknown
	begun time.Time
	done  atomic.Int64 // bytes
	// Bytes of the copy that were shared instead.
	shared atomic.Int64
	told   atomic.Int64 // when the time that is left was told last, in nanoseconds since begun
}

// newProgress shows progress on standard error if that is a terminal, and -q was not given.
func newProgress(cmd *cobra.Command) *progress {
	if f, ok := cmd.ErrOrStderr().(*os.File); ok && !isQuiet(cmd) && term.IsTerminal(int(f.Fd())) {
		return &progress{out: f}
	}
	return &progress{}
}

// phase ends the bar there is and begins one for total bytes, -1 where their number is unknown.
func (p *progress) phase(name string, total int64) {
	p.end()
	if p.out == nil {
		return
	}
	p.name, p.total, p.begun = name, total, time.Now()
	p.done.Store(0)
	p.shared.Store(0)
	p.told.Store(0)
	p.bar = progressbar.NewOptions64(total,
		progressbar.OptionSetWriter(p.out),
		progressbar.OptionSetDescription(name),
		progressbar.OptionShowBytes(true),
		progressbar.OptionShowTotalBytes(true),
		progressbar.OptionShowCount(),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionSetElapsedTime(false),
		progressbar.OptionFullWidth(),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionSetTheme(progressbar.Theme{Saucer: "█", SaucerHead: "█", SaucerPadding: "░", BarStart: " ", BarEnd: " "}),
	)
}

// add says that n more bytes are done. Any number of goroutines may call it.
func (p *progress) add(n int64) {
	if p.bar == nil {
		return
	}
	_ = p.bar.Add64(n) // a terminal that is gone is no reason to fail
	done, now, told := p.done.Add(n), int64(time.Since(p.begun)), p.told.Load()
	if p.total > 0 && done > 0 && now-told > int64(time.Second) && p.told.CompareAndSwap(told, now) {
		left := time.Duration(float64(now) * float64(max(p.total-done, 0)) / float64(done))
		name := p.name
		if shared := p.shared.Load(); shared > 0 {
			name += ", " + size.Text(shared) + " shared"
		}
		p.bar.Describe(name + ", " + size.Duration(left) + " left")
	}
}

// share says that n of the bytes are shared, not copied. Any number of goroutines may call it.
func (p *progress) share(n int64) { p.shared.Add(n) }

// end clears the line.
func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Clear()
		p.bar = nil
	}
}

// errInterrupted is the cause of a context that a signal ended.
var errInterrupted = errors.New("interrupted")

// interruptible returns a context that ends at the first signal that asks the program to end. A second one ends the
// program at once.
func interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		defer fault.Then(func(err error) { cancel(err) })
		select {
		case <-signals:
			signal.Stop(signals)
			cancel(errInterrupted)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
	}
}

// interrupted gives the error of an interrupted command its status, and says what is left.
func interrupted(err error, left string) error {
	if errors.Is(err, errInterrupted) {
		return &statusError{statusInterrupted, fmt.Errorf("%w; %s", errInterrupted, left)}
	}
	return err
}
