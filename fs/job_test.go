package fs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// askJob returns what the attribute of a job tells, as a program that asks for it gets it.
func askJob[R any](t *testing.T, j *job[R]) (told mounts.Job[R]) {
	t.Helper()
	if err := json.Unmarshal([]byte(j.xattr("job")["job"]), &told); err != nil {
		t.Fatal(err)
	}
	return told
}

// untilDone is work that ends when it is told to.
func untilDone(ctx context.Context) (*int, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// One job runs at a time. It is stopped by its id alone, and the next one may begin when it has ended.
func TestJobsRunOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := new(job[int])
		if told := j.xattr("job"); told != nil {
			t.Errorf("before the first: %v", told)
		}
		j.stop("") // of which there is none
		if s := j.begin("a", untilDone); s != fuse.OK {
			t.Fatal(s)
		}
		j.phase("copy", 10)
		j.progress(3)
		j.progress(4)
		j.shared(2)
		if now := askJob(t, j); now != (mounts.Job[int]{ID: "a", Running: true, Phase: "copy", Done: 7, Total: 10, Shared: 2}) {
			t.Errorf("while it runs: %+v", now)
		}
		j.phase("sync", 5) // which begins anew
		if now := askJob(t, j); now != (mounts.Job[int]{ID: "a", Running: true, Phase: "sync", Total: 5}) {
			t.Errorf("in the next phase: %+v", now)
		}
		if s := j.begin("b", untilDone); s != fuse.EBUSY {
			t.Errorf("a second one: %v, want EBUSY", s)
		}
		j.stop("b")
		synctest.Wait()
		if now := askJob(t, j); now.ID != "a" || !now.Running {
			t.Errorf("after another one was stopped: %+v", now)
		}
		j.stop("a")
		synctest.Wait()
		if now := askJob(t, j); now.Running || now.Error != errStopped.Error() || now.Refused {
			t.Errorf("after it was stopped: %+v", now)
		}
		j.stop("a") // it has ended
		done := 7
		if s := j.begin("b", func(context.Context) (*int, error) { return &done, nil }); s != fuse.OK {
			t.Fatal(s)
		}
		synctest.Wait()
		if now := askJob(t, j); now.ID != "b" || now.Running || now.Result == nil || *now.Result != 7 || now.Error != "" {
			t.Errorf("the next: %+v", now)
		}
	})
}

// How a job ended is told, also that it was refused, and that the program has a fault. The next one may begin.
func TestJobsTellHowTheyEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := new(job[int])
		for _, tc := range []struct {
			err     error
			refused bool
		}{
			{fmt.Errorf("it has no parent: %w", vhdx.ErrOptions), true},
			{fmt.Errorf("open base.vhdx: %w", iofs.ErrPermission), true},
			{errors.New("no space left on device"), false},
			{nil, false},
		} {
			if s := j.begin("a", func(context.Context) (*int, error) { return nil, tc.err }); s != fuse.OK {
				t.Fatal(s)
			}
			synctest.Wait()
			want := ""
			if tc.err != nil {
				want = tc.err.Error()
			}
			if now := askJob(t, j); now.Running || now.Error != want || now.Refused != tc.refused {
				t.Errorf("%v: %+v", tc.err, now)
			}
		}
		if s := j.begin("a", func(context.Context) (*int, error) { panic("out of order") }); s != fuse.OK {
			t.Fatal(s)
		}
		synctest.Wait()
		if now := askJob(t, j); now.Running || now.Error == "" || now.Refused {
			t.Errorf("after a panic: %+v", now)
		}
		if s := j.begin("b", func(context.Context) (*int, error) { return new(int), nil }); s != fuse.OK {
			t.Error(s)
		}
	})
}

// A job that has patience goes on as long as a program asks about it, and ends when that was killed. Another one goes on.
func TestJobEndsWhenNobodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, alone := &job[int]{patience: mergePatience}, new(job[int])
		for _, j := range []*job[int]{asked, alone} {
			if s := j.begin("a", untilDone); s != fuse.OK {
				t.Fatal(s)
			}
		}
		for range 10 {
			time.Sleep(mergePatience - 2*remountWatch)
			if now := askJob(t, asked); !now.Running {
				t.Fatalf("it has ended while it is asked for: %+v", now)
			}
		}
		time.Sleep(mergePatience + 2*remountWatch)
		synctest.Wait()
		if now := askJob(t, asked); now.Running || now.Error != errUnasked.Error() {
			t.Errorf("when no program asks any more: %+v", now)
		}
		if now := askJob(t, alone); !now.Running {
			t.Errorf("without patience: %+v", now)
		}
		// The time of the last one does not count for the next.
		if s := asked.begin("b", untilDone); s != fuse.OK {
			t.Fatal(s)
		}
		time.Sleep(mergePatience - 2*remountWatch)
		if now := askJob(t, asked); !now.Running {
			t.Errorf("the next one: %+v", now)
		}
		asked.end()
		alone.end()
	})
}

// A job ends when the mount is made read-only, which nothing but the mount table tells.
func TestJobEndsByRemount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var readOnly atomic.Bool
		j := &job[int]{readOnly: readOnly.Load}
		if s := j.begin("a", untilDone); s != fuse.OK {
			t.Fatal(s)
		}
		time.Sleep(10 * remountWatch)
		if now := askJob(t, j); !now.Running {
			t.Fatalf("of a writable mount: %+v", now)
		}
		readOnly.Store(true)
		time.Sleep(2 * remountWatch)
		synctest.Wait()
		if now := askJob(t, j); now.Running || now.Error != errRemounted.Error() {
			t.Errorf("of a mount that was made read-only: %+v", now)
		}
	})
}

// The end of a mount waits for a job, which it stops, and lets no other begin.
func TestEndWaitsForTheJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := new(job[int])
		used := true
		begin := func() fuse.Status {
			return j.begin("a", func(ctx context.Context) (*int, error) {
				<-ctx.Done()
				time.Sleep(time.Hour) // its last step
				used = false
				return nil, context.Cause(ctx)
			})
		}
		if s := begin(); s != fuse.OK {
			t.Fatal(s)
		}
		j.end()
		if used {
			t.Error("the disk is still used")
		}
		if now := askJob(t, j); now.Running || now.Error != errStopped.Error() {
			t.Errorf("%+v", now)
		}
		if s := begin(); s != fuse.EBUSY {
			t.Errorf("behind the end: %v, want EBUSY", s)
		}
		j.end()
		new(job[int]).end() // where there was none
	})
}
