package cli

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// minDescriptors is how many files a process must be allowed to have open to serve a mount: the image, the connection,
// what the Go runtime needs, pipes for some long reads. Each parent of the image takes one more.
const minDescriptors = 64

// checkDescriptors returns an error where this process may not have as many files open as a mount needs. The Go runtime
// has raised the limit as far as it goes.
func checkDescriptors() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur >= minDescriptors {
		return nil
	}
	return fmt.Errorf("this process may have %d files open, and a mount needs %d at the least, and one for each parent of the image; "+
		"raise the limit: ulimit -n, prlimit --nofile=, or LimitNOFILE= of the unit", limit.Cur, minDescriptors)
}
