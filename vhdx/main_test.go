package vhdx

import (
	"os"
	"runtime/debug"
	"testing"
)

// TestMain lets garbage grow: the tests make images in memory by the hundreds, and collecting them took a third of the time.
func TestMain(m *testing.M) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
		debug.SetMemoryLimit(2 << 30) // from where on it is collected as usual
	}
	os.Exit(m.Run())
}
