//go:build probe && !amd64

package cli

import "golang.org/x/sys/unix"

// call32 is for processors that know programs of 32 bits of their own.
func call32() error { return unix.EPERM }
