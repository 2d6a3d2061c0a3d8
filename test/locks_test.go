package test

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestReadOnlyMountKeepsQemuFromWriting(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img, raw := sampleImage(t)
	s := readOnly(t, img)
	if out, err := command("qemu-io", "-f", "vhdx", "-c", "write 0 512", img); err == nil {
		t.Errorf("qemu-io wrote to a mounted image:\n%s", out)
	}
	if out, err := command("qemu-img", "check", "-r", "all", "-f", "vhdx", img); err == nil {
		t.Errorf("qemu-img check -r opened a mounted image for writing:\n%s", out)
	}
	// Readers disturb nobody.
	must(t, "qemu-img", "info", img)
	must(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", img, raw)
	sameContent(t, s.disk, raw)
	second := readOnly(t, img)
	sameContent(t, second.disk, raw)
	s.end(t)
	second.end(t)
	qemuWrite(t, img, "write -P 1 0 512") // the locks are gone
}

func TestReadWriteMountKeepsOthersOut(t *testing.T) {
	t.Parallel()
	img, raw := sampleImage(t)
	s := serve(t, img)
	for _, args := range [][]string{
		{"qemu-io", "-f", "vhdx", "-c", "write 0 512", img},
		{"qemu-img", "check", "-f", "vhdx", img},
		{"qemu-img", "info", img},
	} {
		if out, err := command(args[0], args[1:]...); err == nil {
			t.Errorf("%s: not refused\n%s", strings.Join(args, " "), out)
		}
	}
	for _, args := range [][]string{{"-f", img, newDir(t)}, {"-f", "-o", "ro", img, newDir(t)}} {
		r := vhdxfs(t, args...)
		if r.status == 0 || !strings.Contains(r.stderr, img) || !strings.Contains(r.stderr, strconv.Itoa(s.cmd.Process.Pid)) {
			t.Errorf("vhdxfs %s: exit status %d; the message must name the image and process %d, which holds it:\n%s",
				strings.Join(args, " "), r.status, s.cmd.Process.Pid, r.stderr)
		}
	}
	sameContent(t, s.disk, raw)
}

func TestReadWriteMountIsRefusedWhileOthersRead(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img, raw := sampleImage(t)
	s := readOnly(t, img)
	if r := vhdxfs(t, "-f", img, newDir(t)); r.status != mountStatus || !strings.Contains(r.stderr, img) {
		t.Errorf("mounted read-only already: exit status %d\n%s", r.status, r.stderr)
	}
	s.end(t)
	release := qemuHolds(t, img, "-r")
	if r := vhdxfs(t, "-f", img, newDir(t)); r.status != mountStatus || !strings.Contains(r.stderr, img) {
		t.Errorf("open in qemu-io -r: exit status %d\n%s", r.status, r.stderr)
	}
	release()
	sameContent(t, serve(t, img).disk, raw)
}

func TestMountIsRefusedWhileQemuWrites(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img, raw := sampleImage(t)
	release := qemuHolds(t, img)
	for _, args := range [][]string{
		{"-f", img, newDir(t)},
		{"-f", "-o", "ro,lock=on", img, newDir(t)},
		{"info", img},
	} {
		r := vhdxfs(t, args...)
		if r.status == 0 || !strings.Contains(r.stderr, img) || !strings.Contains(r.stderr, "has the image open: qemu-io (process ") {
			t.Errorf("vhdxfs %s: exit status %d; the message must name the image and the program that has it:\n%s",
				strings.Join(args, " "), r.status, r.stderr)
		}
	}
	s := readOnly(t, img, "lock=off")
	sameContent(t, s.disk, raw)
	s.end(t)
	release()
	sameContent(t, serve(t, img).disk, raw)
}

func TestReadOnlyMountIsNotRefusedWhileQemuReads(t *testing.T) {
	t.Parallel()
	requireFUSE(t)
	img, raw := sampleImage(t)
	qemuHolds(t, img, "-r")
	sameContent(t, readOnly(t, img).disk, raw)
}

func TestMountLocksTheParentToo(t *testing.T) {
	t.Parallel()
	c := openCorpus(t)
	child, parent := c.child(t)
	dir := t.TempDir()
	img := c.unpack(t, child, dir, child.Name)
	placed := c.unpack(t, parent, dir, child.parentName(t))
	requireTools(t, "qemu-io")

	s := serve(t, img)
	if out, err := command("qemu-img", "check", "-r", "all", "-f", "vhdx", placed); err == nil {
		t.Errorf("qemu-img check -r opened the parent of a mounted image for writing:\n%s", out)
	}
	s.end(t)

	qemuHolds(t, placed)
	r := vhdxfs(t, "-f", img, newDir(t))
	if r.status == 0 || !strings.Contains(r.stderr, filepath.Base(placed)) {
		t.Errorf("parent open in qemu-io: exit status %d; the message must name it:\n%s", r.status, r.stderr)
	}
}

// qemuHolds keeps an image open in qemu-io, for writing unless the options say otherwise, until release is called
// or the test ends.
func qemuHolds(t *testing.T, img string, options ...string) (release func()) {
	t.Helper()
	requireTools(t, "qemu-io")
	cmd := exec.Command("qemu-io", append(options, "-f", "vhdx", img)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	release = func() {
		if !ended {
			ended = true
			in.Close() // qemu-io ends at the end of its input
			cmd.Wait()
		}
	}
	t.Cleanup(release)
	// It answers a command once it has the image open.
	if _, err := in.Write([]byte("length\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		release()
		t.Fatalf("qemu-io %s: %v %q", img, err, line)
	}
	return release
}
