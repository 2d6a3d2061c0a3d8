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
	directory := dir // as it is configured
	agent := func(action string) int {
		t.Helper()
		cmd := exec.Command("../packaging/vhdxfs.ocf", action)
		cmd.Env = append(os.Environ(), "OCF_RESKEY_image="+img, "OCF_RESKEY_directory="+directory, "OCF_RESKEY_program="+program.path(t), "OCF_RESKEY_options=commit=1")
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
	// The mount table has another name for it.
	link := filepath.Join(newDir(t), "link")
	if err := os.Symlink(filepath.Dir(dir), link); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(filepath.Dir(dir), "a mount")
	directory = filepath.Join(link, "a mount") + "/"
	steps("start", ocfSuccess, "monitor", ocfSuccess, "start", ocfSuccess, "stop", ocfSuccess, "monitor", ocfNotRunning)
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

// The tester that comes with resource agents finds nothing wrong.
func TestResourceAgentByTester(t *testing.T) {
	requireFUSE(t)
	requireTools(t, "ocf-tester", "xmllint")
	img, dir := create(t, "64M"), newDir(t)
	public, err := os.MkdirTemp("/var/tmp", "vhdxfs-agent-") // the tester runs the agent as nobody, too
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(public) })
	if err := os.Chmod(public, 0o755); err != nil {
		t.Fatal(err)
	}
	agent := filepath.Join(public, "image")
	must(t, "install", "-m", "755", "../packaging/vhdxfs.ocf", agent)
	cmd := exec.Command("ocf-tester", "-n", "vm1", "-o", "image="+img, "-o", "directory="+filepath.Join(dir, "mount"), "-o", "program="+program.path(t), agent)
	cmd.Env = append(os.Environ(), "OCF_ROOT=/usr/lib/ocf")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A cluster as docs/cluster.md has it: an image, and a machine that uses its disk.
const pacemakerCluster = `<cib crm_feature_set="3.0.0" validate-with="pacemaker-3.0" epoch="1" num_updates="0" admin_epoch="0" have-quorum="1">
<configuration>
	<crm_config><cluster_property_set id="o"><nvpair id="stonith" name="stonith-enabled" value="true"/></cluster_property_set></crm_config>
	<nodes><node id="1" uname="node1"/><node id="2" uname="node2"/></nodes>
	<resources>
		<primitive id="power" class="stonith" type="fence_ipmilan"/>
		<group id="vm">
			<primitive id="vm1" class="ocf" provider="vhdxfs" type="image">
				<instance_attributes id="a">
					<nvpair id="a1" name="image" value="/srv/cluster/vm1.avhdx"/>
					<nvpair id="a2" name="directory" value="/run/vhdx/vm1"/>
				</instance_attributes>
				<operations>
					<op id="start" name="start" interval="0s" timeout="60s"/>
					<op id="stop" name="stop" interval="0s" timeout="120s"/>
					<op id="monitor" name="monitor" interval="10s" timeout="20s"/>
				</operations>
			</primitive>
			<primitive id="machine" class="ocf" provider="heartbeat" type="VirtualDomain"/>
		</group>
	</resources>
	<constraints>
		<rsc_location id="prefer" rsc="vm" node="node1" score="10"/>
		<rsc_location id="power-node" rsc="power" node="node2" score="10"/>
	</constraints>
</configuration>
<status/>
</cib>`

// Pacemaker restarts the image when its monitor fails, after what uses it has stopped. When it cannot be stopped, the node is
// fenced before another one mounts the image.
func TestPacemakerPlan(t *testing.T) {
	requireTools(t, "crm_simulate")
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(file("new"), []byte(pacemakerCluster), 0o644); err != nil {
		t.Fatal(err)
	}
	simulate := func(from, to string, args ...string) string {
		t.Helper()
		return must(t, "crm_simulate", append([]string{"--simulate", "--xml-file=" + file(from), "--save-output=" + file(to)}, args...)...)
	}
	ordered := func(plan string, events ...string) {
		t.Helper()
		rest := plan
		for _, event := range events {
			_, after, ok := strings.Cut(rest, event)
			if !ok {
				t.Errorf("%q does not come in the order %q:\n%s", event, events, plan)
				return
			}
			rest = after
		}
	}
	simulate("new", "up", "--node-up=node1", "--node-up=node2")
	ordered(simulate("up", "again", "--op-inject=vm1_monitor_10000@node1=1"),
		"Executing", "machine         stop on node1", "vm1             stop on node1", "vm1             start on node1", "machine         start on node1")
	simulate("up", "stuck", "--op-inject=vm1_monitor_10000@node1=1", "--op-fail=vm1_stop_0@node1=1")
	ordered(simulate("stuck", "fenced"), "Executing", "Fencing node1", "vm1             start on node2", "machine         start on node2")
}
