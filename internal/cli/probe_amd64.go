//go:build probe

package cli

import "golang.org/x/sys/unix"

// call32 makes a system call as a program of 32 bits does: it asks for the number of its process.
func call32() error {
	const getpid = 20
	if n := int80(getpid); n < 0 {
		return errnoError(unix.Errno(-n))
	}
	return nil
}

// int80 makes a system call without arguments.
func int80(number uint32) int32
