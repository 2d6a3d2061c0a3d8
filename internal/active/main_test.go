package active

import (
	"os"
	"testing"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// TestMain makes the test program ask a mount when it is started for that.
func TestMain(m *testing.M) {
	if status, ran := mounts.Answer(os.Args[1:], os.Stdout); ran {
		os.Exit(status)
	}
	os.Exit(m.Run())
}
