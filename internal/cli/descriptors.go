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
	return fmt.Errorf("this process may open only %d files; a mount needs at least %d, and one for each parent; "+
		"raise the limit with ulimit -n, prlimit --nofile= or LimitNOFILE=", limit.Cur, minDescriptors)
}
