package test

import (
	"encoding/xml"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// What Pacemaker's resource agents return.
const (
	ocfSuccess    = 0
	ocfError      = 1
	ocfConfigured = 6
	ocfNotRunning = 7
)

// The resource agent mounts an image, sees when its server has died, and unmounts what is left.
func TestResourceAgent(t *testing.T) {
	requireFUSE(t)
	img, dir := create(t, "64M"), filepath.Join(newDir(t), "mount")
	agent := func(action string) int {
		t.Helper()
		cmd := exec.Command("../packaging/vhdxfs.ocf", action)
		cmd.Env = append(os.Environ(), "OCF_RESKEY_image="+img, "OCF_RESKEY_directory="+dir, "OCF_RESKEY_program="+program.path(t), "OCF_RESKEY_options=commit=1")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		t.Logf("%s: %d %s", action, cmd.ProcessState.ExitCode(), out)
		if action == "meta-data" {
			if err := xml.Unmarshal(out, new(struct{})); err != nil {
				t.Errorf("the meta data: %v", err)
			}
		}
		return cmd.ProcessState.ExitCode()
	}
	t.Cleanup(func() {
		if _, mounted := mountAt(dir); mounted {
			must(t, "umount", "-l", dir)
		}
	})
	steps := func(actions ...any) {
		t.Helper()
		for i := 0; i < len(actions); i += 2 {
			if status := agent(actions[i].(string)); status != actions[i+1] {
				t.Errorf("%s: status %d, want %d", actions[i], status, actions[i+1])
			}
		}
	}
	steps("meta-data", ocfSuccess, "validate-all", ocfSuccess, "monitor", ocfNotRunning, "stop", ocfSuccess)
	steps("start", ocfSuccess, "monitor", ocfSuccess, "start", ocfSuccess, "stop", ocfSuccess, "monitor", ocfNotRunning)
	if _, mounted := mountAt(dir); mounted {
		t.Error("the agent has not unmounted the image")
	}
	steps("start", ocfSuccess)
	pids := mustVhdxfs(t, "list", "--json")
	_, pid, _ := strings.Cut(pids[strings.Index(pids, dir):], `"pid": `)
	n, err := strconv.Atoi(strings.FieldsFunc(pid, func(r rune) bool { return r < '0' || r > '9' })[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent sees that the server is dead", func() bool { return agent("monitor") == ocfError })
	steps("start", ocfSuccess, "monitor", ocfSuccess, "stop", ocfSuccess, "monitor", ocfNotRunning)
	img = "disk.vhdx"
	steps("validate-all", ocfConfigured)
}
