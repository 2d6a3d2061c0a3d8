package processes

import (
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/vhdxfs/vhdxfs/internal/fault"
)

// A process that does not let itself be looked at is left out, and however many there are, the others are found.
func TestFindWaitsForNone(t *testing.T) {
	var others []int
	for range 3 {
		cmd := exec.Command("sleep", "infinity")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		others = append(others, cmd.Process.Pid)
	}
	forever := make(chan struct{})
	defer close(forever)
	found := make(map[int]int)
	for pid, value := range Find(func(pid int) (int, bool) {
		if slices.Contains(others[:2], pid) {
			<-forever
		}
		return -pid, slices.Contains(others, pid) || pid == os.Getpid()
	}) {
		found[pid] = value
	}
	for _, pid := range []int{others[2], os.Getpid()} {
		if found[pid] != -pid {
			t.Errorf("process %d: %d", pid, found[pid])
		}
	}
	if len(found) != 2 {
		t.Errorf("found %v", found)
	}
	if v, ok := Look(func() (int, bool) { <-forever; return 1, true }); ok || v != 0 {
		t.Errorf("look: %d, %v", v, ok)
	}
}

// A fault of what looks is one of its caller.
func TestLookFails(t *testing.T) {
	var err error
	func() {
		defer fault.Catch(&err)
		Look(func() (int, bool) { panic("broken") })
	}()
	if err == nil {
		t.Error("no error")
	}
}

func TestOpenFiles(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !slices.ContainsFunc(OpenFiles(os.Getpid()), func(path string) bool {
		to, err := os.Readlink(path)
		return err == nil && to == "/dev/null"
	}) {
		t.Error("the open file is missing")
	}
}
