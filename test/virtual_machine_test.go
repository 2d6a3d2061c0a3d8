package test

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The documentation of virtual machines, whose examples are tried.
const virtualMachines = "../docs/virtual-machines.md"

// exampleLine returns the line of the page that has the words, without its indentation and its prompt.
func exampleLine(t *testing.T, page, words string) string {
	t.Helper()
	for line := range strings.Lines(readText(t, page)) {
		if strings.HasPrefix(line, "    ") && strings.Contains(line, words) {
			return strings.TrimLeft(strings.TrimSpace(line), "#$ ")
		}
	}
	t.Fatalf("%s has no example with %q", page, words)
	return ""
}

// bootSector is a program for the first sector of a disk. It writes a line to the serial port, copies itself to the second sector,
// and ends the machine by the device isa-debug-exit with the status 33, or 35 if the disk could not be written. With stays it goes
// on instead.
func bootSector(line string, stays bool) []byte {
	code := []byte{
		0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // ax, ds, es, ss = 0
		0xbc, 0x00, 0x7c, 0xfc, // sp = 7c00; cld
		0x52,             // push dx, the number of the disk
		0xbe, 0x34, 0x7c, // si = line
		0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5, // out(3f8) until a zero
		0x5a,                                                 // pop dx
		0xb8, 0x01, 0x03, 0xb9, 0x02, 0x00, 0xb6, 0x00, 0xbb, // write one sector, cylinder 0, sector 2, head 0,
		0x00, 0x7c, 0xcd, 0x13, // from 7c00
		0xb0, 0x10, 0x14, 0x00, // al = 10 + carry
		0xba, 0xf4, 0x00, 0xee, // out(f4)
		0xf4, 0xeb, 0xfd, // hlt, again
	}
	if stays {
		at := bytes.Index(code, []byte{0xba, 0xf4, 0x00, 0xee})
		copy(code[at:], []byte{0x90, 0x90, 0x90, 0x90})
	}
	sector := make([]byte, 512)
	copy(sector, code)
	copy(sector[0x34:], line+"\r\n\x00")
	binary.LittleEndian.PutUint16(sector[510:], 0xaa55)
	return sector
}

// qemuOf returns the command of the documentation that starts a machine with a disk, and what makes the machine small. The machine
// has no display, and writes its serial port to a file.
func qemuOf(t *testing.T, disk, serial string, more ...string) *exec.Cmd {
	t.Helper()
	words := strings.Fields(exampleLine(t, virtualMachines, "qemu-system-x86_64"))
	for i, w := range words {
		words[i] = strings.ReplaceAll(w, "/mnt/vhdx/disk.raw", disk)
		if words[i] == "2G" {
			words[i] = "64M"
		}
	}
	args := append(words[1:], "-accel", "tcg", "-display", "none", "-nic", "none", "-no-reboot", "-serial", "file:"+serial,
		"-device", "isa-debug-exit,iobase=0xf4,iosize=0x04")
	cmd := exec.Command(words[0], append(args, more...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// A machine boots from disk.raw, as the documentation says it, and what it writes is in the image. While it runs, umount names it.
func TestVirtualMachineBootsFromTheDisk(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "qemu-system-x86_64")
	img := create(t, "64MiB")
	s := serve(t, img)
	sector := bootSector("started from disk.raw", false)
	writeAt(t, s.disk, sector, 0)
	serial := filepath.Join(t.TempDir(), "serial")
	cmd := qemuOf(t, s.disk, serial)
	out, err := cmd.CombinedOutput()
	if status := cmd.ProcessState.ExitCode(); status != 33 {
		t.Errorf("the machine ended with %d, %v\n%s", status, err, out)
	}
	if got := readText(t, serial); !strings.Contains(got, "started from disk.raw\r\n") {
		t.Errorf("the machine says %q", got)
	}
	if got := readAt(t, s.disk, 512, 512); !bytes.Equal(got, sector) {
		t.Error("what the machine wrote is not on the disk")
	}
	s.end(t)
	checkClean(t, img)
	r := readOnly(t, img)
	if got := readAt(t, r.disk, 512, 512); !bytes.Equal(got, sector) {
		t.Error("what the machine wrote is not in the image")
	}
	r.end(t)

	// One that runs is in the way, and is named.
	before := sha256File(t, img)
	s = serve(t, img, "-o", "overlay=tmp") // as the page has it for a machine that shall change nothing
	writeAt(t, s.disk, bootSector("it runs", true), 0)
	cmd = qemuOf(t, s.disk, serial)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "the machine", func() bool {
		b, err := os.ReadFile(serial)
		return err == nil && bytes.Contains(b, []byte("it runs\r\n"))
	})
	if r := vhdxfs(t, "umount", s.dir); r.status != 32 || !strings.Contains(r.stderr, "qemu-system") {
		t.Errorf("umount: status %d, %q", r.status, r.stderr)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	s.end(t)
	unchanged(t, img, before)
}

// A machine takes a disk with sectors of 4096 bytes by the options of the documentation.
func TestVirtualMachineWithLargeSectors(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "qemu-system-x86_64")
	text := readText(t, virtualMachines)
	_, text, ok := strings.Cut(text, "`-device virtio-blk-pci,")
	device, _, _ := strings.Cut(text, "`")
	if !ok || !strings.HasSuffix(device, "drive=…") {
		t.Fatalf("the page has no device for such sectors: %q", device)
	}
	s := serve(t, create(t, "64MiB", "--logical-sector-size", "4096"))
	cmd := qemuOf(t, s.disk, filepath.Join(t.TempDir(), "serial"), "-S", "-monitor", "stdio",
		"-device", "virtio-blk-pci,"+strings.TrimSuffix(device, "…")+"vhdx")
	for i, a := range cmd.Args {
		if strings.HasPrefix(a, "file=") {
			cmd.Args[i] = strings.Replace(a, "if=virtio", "if=none,id=vhdx", 1)
		}
	}
	cmd.Stdin = strings.NewReader("info qtree\nquit\n")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "logical_block_size = 4096") {
		t.Errorf("%v\n%s", err, out)
	}
}

// The XML of the documentation is what libvirt accepts.
func TestXMLOfLibvirt(t *testing.T) {
	t.Parallel()
	requireTools(t, "virt-xml-validate", "xmllint")
	path := filepath.Join(t.TempDir(), "machine.xml")
	xml := domainXML(t, "/mnt/vhdx/disk.raw", "/tmp/serial")
	writeFile(t, path, []byte(xml))
	if out, err := command("virt-xml-validate", path, "domain"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	writeFile(t, path, []byte(strings.Replace(xml, "type='raw'", "typ='raw'", 1))) // it does look
	if out, err := command("virt-xml-validate", path, "domain"); err == nil {
		t.Errorf("what is wrong is accepted: %s", out)
	}
}

// domainXML describes a machine with the disk of the documentation, at a path. Its serial port is a file.
func domainXML(t *testing.T, path, serial string) string {
	t.Helper()
	_, text, ok := strings.Cut(readText(t, virtualMachines), "    <disk ")
	disk, _, closed := strings.Cut(text, "</disk>")
	if !ok || !closed || !strings.Contains(disk, "/mnt/vhdx/disk.raw") {
		t.Fatal("the page has no XML of a disk")
	}
	return `<domain type='qemu'><name>vhdx</name><memory unit='MiB'>64</memory><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>` +
		"<disk " + strings.ReplaceAll(disk, "/mnt/vhdx/disk.raw", path) + "</disk>" +
		`<serial type='file'><source path='` + serial + `'/><target port='0'/></serial></devices></domain>`
}

// An ordinary user mounts an image and has libvirt start a machine from it.
func TestLibvirtBootsFromTheDisk(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	requireTools(t, "libvirtd", "virsh", "qemu-system-x86_64", "setpriv")
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	sector := bootSector("started by libvirt", true)
	work := newDir(t)
	img, point, serial, domain := work+"/disk.vhdx", work+"/vhdx", work+"/serial", work+"/domain.xml"
	raw := filepath.Join(t.TempDir(), "disk.raw")
	must(t, "truncate", "--size", "16M", raw)
	writeAt(t, raw, sector, 0)
	mustVhdxfs(t, "convert", "-f", "raw", raw, img)
	writeFile(t, domain, []byte(domainXML(t, point+"/disk.raw", serial)))
	must(t, "mkdir", point)
	// The paths of sockets have to be short.
	home, err := os.MkdirTemp("", "h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	must(t, "chown", "-R", nobody, work, home)
	letPass(t, point)
	letPass(t, home)
	letPass(t, program.path(t))
	user := func(args ...string) *exec.Cmd {
		args = asNobody(args...)
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+home, "XDG_RUNTIME_DIR="+home, "XDG_CONFIG_HOME="+home, "XDG_CACHE_HOME="+home)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		return cmd
	}
	virsh := func(args ...string) (string, error) {
		out, err := user(append([]string{"virsh", "-c", "qemu:///session"}, args...)...).CombinedOutput()
		return string(out), err
	}
	mount := user(program.path(t), "-q", img, point)
	if out, err := mount.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		if _, mounted := mountAt(point); mounted { // after a failure
			unmount(t, point)
		}
	})
	daemon := user("libvirtd")
	var said logBuffer
	daemon.Stderr = &said
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Signal(syscall.SIGTERM)
		_ = daemon.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	eventually(t, "libvirtd", func() bool {
		_, err := os.Stat(home + "/libvirt/libvirt-sock")
		return err == nil
	})
	for _, args := range [][]string{{"define", domain}, {"start", "vhdx"}} {
		if out, err := virsh(args...); err != nil {
			t.Fatalf("virsh %q: %v\n%s", args, err, out)
		}
	}
	eventually(t, "the machine", func() bool {
		b, err := os.ReadFile(serial)
		return err == nil && bytes.Contains(b, []byte("started by libvirt\r\n"))
	})
	for _, args := range [][]string{{"destroy", "vhdx"}, {"undefine", "vhdx"}} {
		if out, err := virsh(args...); err != nil {
			t.Errorf("virsh %q: %v\n%s", args, err, out)
		}
	}
	if out, err := user(program.path(t), "umount", point).CombinedOutput(); err != nil {
		t.Fatalf("umount: %v\n%s", err, out)
	}
	checkClean(t, img)
	s := readOnly(t, img)
	if got := readAt(t, s.disk, 512, 512); !bytes.Equal(got, sector) {
		t.Error("what the machine wrote is not in the image")
	}
}
