package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// Commands that mount one image take turns, so that one that finds the image unmounted does not meet another one that has begun
// to mount it: each finds what the one before it has left. They lock a directory beside the mount points of attach, which
// is named after the image's file. One that was killed leaves it behind, for the next sweep.

// turnPatience is how long the commands before this one may take.
const turnPatience = 60 * time.Second

// turnPause is how often a turn is asked for again.
const turnPause = 20 * time.Millisecond

// takeTurn waits until no other command of this user is mounting the image, and keeps others waiting until done is called. Where
// there is no place for the lock, it does neither.
func takeTurn(ctx context.Context, image string) (done func(), err error) {
	done = func() {}
	st, err := os.Stat(image)
	if err != nil {
		return done, nil // to be told when it is opened
	}
	parent, err := runDir()
	if err != nil || os.MkdirAll(parent, 0o755) != nil || refuseShared(parent) != nil {
		return done, nil
	}
	dir := filepath.Join(parent, ".turn-"+strings.NewReplacer(" ", "-", ":", "-").Replace(mounts.FileID(st)))
	for end := time.Now().Add(turnPatience); ; {
		if err := os.Mkdir(dir, runDirMode); err != nil && !errors.Is(err, fs.ErrExist) {
			return done, nil
		}
		lock, err := lockRunDir(dir, unix.LOCK_EX)
		if err == nil {
			return func() { lock.Close(); _ = removeRunDir(dir) }, nil
		}
		if time.Now().After(end) {
			return done, fmt.Errorf("%s: another vhdxfs command%s is working on it; wait until that has ended", image, holderOf(dir))
		}
		select {
		case <-ctx.Done():
			return done, ctx.Err()
		case <-time.After(turnPause):
		}
	}
}

// holderOf names the process that has locked a directory, in parentheses.
func holderOf(dir string) string {
	id, err := imagefile.CachedFileID(dir)
	if err != nil {
		return ""
	}
	id.PID = os.Getpid()
	if names, _ := imagefile.FindLockHolders(id); names != "" {
		return ", " + names + ","
	}
	return ""
}
