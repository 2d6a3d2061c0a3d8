package test

import (
	"strconv"
	"testing"
)

// monitorOf returns the process that keeps the privileges for the process pid, which serves a mount.
func monitorOf(t *testing.T, pid int) int {
	t.Helper()
	for p, args := range processes() {
		if len(args) > 2 && args[1] == "internal-monitor" && args[2] == strconv.Itoa(pid) {
			return p
		}
	}
	t.Fatalf("process %d has no monitor", pid)
	return 0
}
