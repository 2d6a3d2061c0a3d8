package test

import (
	"bufio"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

var vm = flag.String("vm", "", "a `directory` with the virtual machine that internal/scripts/vm makes; made if it is not there")

// vmPatience is how long a test waits for what a virtual machine has to do, perhaps without the processor's help.
const vmPatience = 8 * time.Minute

// requireVM skips the test unless a virtual machine is asked for, and returns a directory with its disk, which it makes if that
// is not there yet. A machine with further packages has a directory of its own.
func requireVM(t *testing.T, name string, packages ...string) (directory string) {
	t.Helper()
	if *vm == "" {
		t.Skip("boots a virtual machine: needs -args -vm DIRECTORY, as make test-vm gives it")
	}
	requireLoop(t)
	requireTools(t, "qemu-system-x86_64", "mmdebstrap", "mke2fs")
	directory = filepath.Join(*vm, name)
	cmd := exec.Command("../internal/scripts/vm", "image", directory)
	cmd.Env = append(os.Environ(), "VM_PACKAGES="+strings.Join(packages, " "))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return directory
}

// A machine is a virtual one with two disks: its own, and one that it mounts at /srv.
type machine struct {
	directory string // of its kernel
	root, srv string // raw files with ext4
}

// newMachine makes a machine, of the disk in directory, with the program installed in /usr/local, and below /srv what is in the
// directory srv.
func newMachine(t *testing.T, directory, srv string) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{directory: directory, root: filepath.Join(dir, "root.img"), srv: filepath.Join(dir, "srv.img")}
	must(t, "cp", "--sparse=always", filepath.Join(directory, "root.img"), m.root)
	must(t, "mke2fs", "-q", "-t", "ext4", "-L", "srv", "-d", srv, m.srv, "2G")
	m.edit(t, m.root, func(root string) {
		must(t, "install", "-D", release.path(t), filepath.Join(root, "usr/local/bin/vhdxfs"))
		for _, name := range []string{"mount.vhdx", "mount.fuse.vhdxfs", "umount.fuse.vhdxfs"} {
			must(t, "ln", "-s", "/usr/local/bin/vhdxfs", filepath.Join(root, "usr/sbin", name))
		}
	})
	return m
}

// edit mounts one of the disks of a machine that is switched off, for do to look at and to change.
func (m *machine) edit(t *testing.T, disk string, do func(dir string)) {
	t.Helper()
	dir := newDir(t)
	must(t, "mount", "-o", "loop", disk, dir)
	mounted := true
	defer func() {
		if mounted {
			unmount(t, dir)
		}
	}()
	do(dir)
	must(t, "umount", dir)
	mounted = false
}

// A boot is a machine from its start until it is switched off.
type boot struct {
	cmd     *exec.Cmd
	console string // the file with what the machine wrote to its serial port
	conn    net.Conn
	answers *bufio.Reader
	done    chan struct{}
}

// boot starts the machine and waits until it takes commands.
func (m *machine) boot(t *testing.T, words string) *boot {
	t.Helper()
	b := m.start(t, words)
	if line := b.line(t); line != "ready" {
		t.Fatalf("the machine says %q", line)
	}
	return b
}

// start starts the machine, with words for the command line of its kernel. The test's end kills it, if it runs then,
// and shows its console if the test has failed.
func (m *machine) start(t *testing.T, words string) *boot {
	t.Helper()
	// The path of a socket has to be short.
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b := &boot{console: filepath.Join(dir, "console"), done: make(chan struct{})}
	agent := filepath.Join(dir, "agent")
	b.cmd = exec.Command("../internal/scripts/vm", "boot", m.directory, m.root,
		"-drive", "if=virtio,format=raw,cache=unsafe,file="+m.srv,
		"-serial", "file:"+b.console,
		"-chardev", "socket,id=agent,server=on,wait=off,path="+agent,
		"-device", "virtserialport,chardev=agent,name=vhdxfs.agent")
	b.cmd.Env = append(os.Environ(), "VM_APPEND="+words)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var messages logBuffer
	b.cmd.Stderr = &messages
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		b.cmd.Wait()
		close(b.done)
	}()
	t.Cleanup(func() {
		b.kill()
		if t.Failed() {
			t.Logf("%s%s", messages.String(), b.log())
		}
	})
	eventually(t, "qemu to listen", func() bool {
		b.conn, err = net.Dial("unix", agent)
		return err == nil
	})
	t.Cleanup(func() { b.conn.Close() })
	b.answers = bufio.NewReader(b.conn)
	return b
}

// line reads a line that the machine sends.
func (b *boot) line(t *testing.T) string {
	t.Helper()
	b.conn.SetReadDeadline(time.Now().Add(vmPatience))
	line, err := b.answers.ReadString('\n')
	if err != nil {
		t.Fatalf("no answer from the machine: %v", err)
	}
	return strings.TrimSpace(line)
}

// send has the machine run a script, and does not wait.
func (b *boot) send(t *testing.T, script string) {
	t.Helper()
	if _, err := fmt.Fprintln(b.conn, base64.StdEncoding.EncodeToString([]byte(script))); err != nil {
		t.Fatal(err)
	}
}

// run has the machine run a script and returns what it wrote, and an error if its exit status is not 0.
func (b *boot) run(t *testing.T, script string) (string, error) {
	t.Helper()
	b.send(t, script)
	status, output, _ := strings.Cut(b.line(t), " ")
	text, err := base64.StdEncoding.DecodeString(output)
	if err != nil {
		t.Fatalf("%s: answer %q: %v", script, output, err)
	}
	if status != "0" {
		return string(text), errors.New("exit status " + status)
	}
	return string(text), nil
}

// must has the machine run a script that has to succeed and returns what it wrote, without spaces around.
func (b *boot) must(t *testing.T, script string) string {
	t.Helper()
	out, err := b.run(t, script)
	if err != nil {
		t.Fatalf("in the machine: %s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(out)
}

// want has the machine run a script that has to succeed and to write what is wanted.
func (b *boot) want(t *testing.T, script, want string) {
	t.Helper()
	if got := b.must(t, script); got != want {
		t.Errorf("in the machine: %s: %q, want %q", script, got, want)
	}
}

// eventually waits until a script succeeds.
func (b *boot) eventually(t *testing.T, script string) {
	t.Helper()
	out, err := b.run(t, script)
	for deadline := time.Now().Add(vmPatience); err != nil; out, err = b.run(t, script) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain, in the machine: %s: %v\n%s", script, err, out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// off has the machine run a script that switches it off or restarts it, and waits until it is off.
func (b *boot) off(t *testing.T, script string) {
	t.Helper()
	b.send(t, script)
	b.wait(t)
}

// wait waits until the machine is off.
func (b *boot) wait(t *testing.T) {
	t.Helper()
	select {
	case <-b.done:
	case <-time.After(vmPatience):
		t.Fatal("the machine does not go off")
	}
}

// kill takes the machine's power away.
func (b *boot) kill() {
	b.cmd.Process.Kill()
	<-b.done
}

// log returns what is on the console.
func (b *boot) log() string {
	text, _ := os.ReadFile(b.console)
	return strings.ReplaceAll(string(text), "\r", "")
}
