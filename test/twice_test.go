package test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// What is attached or mounted already is done, and prints the same.
func TestAttachTwice(t *testing.T) {
	img := create(t, "16MiB")
	link := filepath.Join(t.TempDir(), "link.vhdx")
	must(t, "ln", "-s", img, link)
	l := attachImage(t, img)
	for _, args := range [][]string{{img}, {link}, {img, l.MountPoint}} {
		if text := mustVhdxfs(t, append([]string{"attach"}, args...)...); text != l.Devices[0].Device+"\n" {
			t.Errorf("attach %s again: %q, want %s", args, text, l.Devices[0].Device)
		}
	}
	for _, args := range [][]string{{"-r", img}, {img, newDir(t)}, {"-o", "partition=1", img}} {
		if r := vhdxfs(t, append([]string{"attach"}, args...)...); r.status == 0 || r.stdout != "" {
			t.Errorf("attach %s, which it is not: status %d, %q", args, r.status, r.stdout)
		}
	}
	if n := len(daemons(l.MountPoint)); n != 1 {
		t.Errorf("%d servers", n)
	}
	mustVhdxfs(t, "detach", img)
	checkDetached(t, l)

	one := mustVhdxfs(t, "attach", "-r", img)
	two := mustVhdxfs(t, "attach", "-r", img)
	mustVhdxfs(t, "detach", img)
	if one != two {
		t.Errorf("attached read-only at %q, then at %q", one, two)
	}

	dir := newDir(t)
	for _, name := range []string{img, link, img} {
		mustVhdxfs(t, "-o", "log=/dev/null", name, dir)
	}
	if n := len(daemons(dir)); n != 1 {
		t.Errorf("mounted again: %d servers", n)
	}
	mustVhdxfs(t, "detach", dir)
	if r := vhdxfs(t, "detach", dir); r.status != 6 {
		t.Errorf("detach again: status %d, %q", r.status, r.stderr)
	}
}

// Whatever lock= says, there is one writer, and a refusal says where the image is mounted and advises nothing that
// destroys it.
func TestOneWriter(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"lock=on", "lock=try", "lock=off"} {
		img := create(t, "16MiB")
		hard := img + ".hard"
		must(t, "ln", img, hard)
		s := serve(t, img, "-o", first)
		for _, second := range []string{"lock=on", "lock=try", "lock=off"} {
			r := vhdxfs(t, "-f", "-o", second, hard, newDir(t))
			want := fmt.Sprintf("already mounted read/write on %s (process %d)", s.dir, s.cmd.Process.Pid)
			if r.status != mountStatus || !strings.Contains(r.stderr, want) || strings.Contains(r.stderr, "lock=off") {
				t.Errorf("%s beside %s: status %d, %q; want 32 and %q", second, first, r.status, r.stderr, want)
			}
		}
		commands := [][]string{{"resize", hard, "32MiB"}, {"check", "--repair", hard}}
		if first != "lock=off" { // which lets readers in
			commands = append(commands, []string{"set-parent", hard, img}, []string{"convert", hard, img + ".copy.vhdx"})
		}
		for _, args := range commands {
			if r := vhdxfs(t, args...); r.status == 0 || !strings.Contains(r.stderr, s.dir) {
				t.Errorf("%s beside %s: status %d, %q; want an error that names %s", args, first, r.status, r.stderr, s.dir)
			}
		}
		s.end(t)
	}

	// Another program.
	requireTools(t, "qemu-io")
	img := create(t, "16MiB")
	qemu := exec.Command("qemu-io", "-f", "vhdx", "-c", "sleep 60000", img)
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	defer qemu.Wait()
	defer qemu.Process.Kill()
	dir := newDir(t)
	eventually(t, "qemu-io to lock the image", func() bool {
		r := vhdxfs(t, "-o", "lock=off,log=/dev/null", img, dir)
		if r.status == 0 {
			mustVhdxfs(t, "detach", dir)
		}
		return r.status == mountStatus && strings.Contains(r.stderr, "qemu-io")
	})
	r := vhdxfs(t, "-o", "lock=try,log=/dev/null", img, dir)
	mustVhdxfs(t, "detach", dir)
	if r.status != 0 || !strings.Contains(r.stderr, "warning") || !strings.Contains(r.stderr, "qemu-io") {
		t.Errorf("lock=try beside a writer: status %d, %q; want a warning", r.status, r.stderr)
	}
}

// The mount of a child keeps its parents from being written, and is named.
func TestParentInUse(t *testing.T) {
	t.Parallel()
	img := create(t, "16MiB")
	kid := filepath.Join(filepath.Dir(img), "kid.avhdx")
	mustVhdxfs(t, "snapshot", img, kid)
	s := serve(t, kid)
	r := vhdxfs(t, "-f", "-o", "orphan_children", img, newDir(t))
	if r.status != mountStatus || !strings.Contains(r.stderr, img+": in use by the mount of "+kid+" on "+s.dir) {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
}

// What is mounted for writing can be looked at, by any of its names, also while it is written.
func TestLookAtMountedImage(t *testing.T) {
	base := create(t, "64MiB", "--block-size", "1MiB")
	kid := filepath.Join(filepath.Dir(base), "kid.avhdx")
	mustVhdxfs(t, "snapshot", base, kid)
	l := attachImage(t, kid)
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() { // each write allocates a block, or trims one
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			at := int64(i%64) * mib
			exec.Command("dd", "if=/dev/urandom", "of="+l.MountPoint+"/disk.raw", "bs=4k", "count=1", "conv=notrunc,fsync", fmt.Sprintf("seek=%d", at/4096)).Run()
			exec.Command("fallocate", "--punch-hole", "--offset", fmt.Sprint(at), "--length", "1MiB", l.MountPoint+"/disk.raw").Run()
		}
	}()
	defer func() { close(stop); <-ended }()
	commands := [][]string{{"info"}, {"info", "--json"}, {"check"}, {"map"}, {"diff"}, {"chain"}}
	for i, name := range []string{kid, l.MountPoint, l.MountPoint + "/disk.raw", l.Devices[0].Device} {
		for _, args := range commands[:max(1, len(commands)-5*i)] { // all of them by one of the names
			if out := mustVhdxfs(t, append(args, name)...); args[0] != "diff" && !strings.Contains(out, kid) && args[0] != "map" {
				t.Errorf("%s %s: %s", args[0], name, out)
			}
		}
	}
	if out := mustVhdxfs(t, "chain", filepath.Dir(kid)); !strings.Contains(out, "kid.avhdx") || !strings.Contains(out, "linked") {
		t.Errorf("chain of the directory: %s", out)
	}
	other := create(t, "64MiB")
	s := serve(t, other)
	for _, args := range [][]string{{"compare", kid, other}, {"compare", other, l.MountPoint}, {"diff", base, kid}, {"diff", "--json", kid, other}, {"info", kid, other}} {
		if r := vhdxfs(t, args...); r.stderr != "" || r.status != 0 && (args[0] != "compare" || r.status != differsStatus) {
			t.Errorf("%s: status %d, %s", args, r.status, r.stderr)
		}
	}
	s.end(t)
}

// A parent that is mounted is one that can be examined.
func TestChainOfMountedParent(t *testing.T) {
	t.Parallel()
	base := create(t, "16MiB")
	kid := filepath.Join(filepath.Dir(base), "kid.avhdx")
	mustVhdxfs(t, "snapshot", base, kid)
	s := serve(t, base, "-o", "orphan_children")
	if out := mustVhdxfs(t, "chain", kid); !strings.Contains(out, ": linked") || !strings.Contains(out, "dynamic, disk 16 MiB") {
		t.Errorf("chain: %s", out)
	}
	s.end(t)
}

// Commands that come at the same moment end as they do one after the other: what is attached or mounted already is done.
func TestTwiceAtOnce(t *testing.T) {
	detectRaces(t)
	requireLoop(t)
	img := create(t, "16MiB")
	before := runDirs(t)
	atOnce := func(args ...string) []string {
		var all sync.WaitGroup
		said := make([]string, 4)
		for i := range said {
			all.Go(func() {
				out, err := exec.Command(program.path(t), args...).Output()
				if said[i] = string(out); err != nil {
					t.Errorf("%s: %v", args, err)
				}
			})
		}
		all.Wait()
		return said
	}
	for range 3 {
		said := atOnce("attach", img)
		l, _ := list(t, img)
		if len(l.Devices) != 1 {
			t.Fatalf("devices: %+v", l)
		}
		for _, s := range said {
			if s != l.Devices[0].Device+"\n" {
				t.Errorf("attach prints %q, want %s", s, l.Devices[0].Device)
			}
		}
		mustVhdxfs(t, "detach", img)
		checkDetached(t, l)
	}
	dir := newDir(t)
	for range 3 {
		atOnce("-o", "log=/dev/null", img, dir)
		if n := len(daemons(dir)); n != 1 {
			t.Errorf("%d servers", n)
		}
		mustVhdxfs(t, "detach", dir)
	}
	if now := runDirs(t); !slices.Equal(now, before) {
		t.Errorf("directories %q are there, and before there were %q", now, before)
	}
}

// A command that was killed while others wait for it holds none of them up.
func TestTurnOfTheKilled(t *testing.T) {
	requireLoop(t)
	img := create(t, "16MiB")
	first := exec.Command(program.path(t), "attach", img)
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond) // somewhere on its way
	first.Process.Kill()
	first.Wait()
	eventually(t, "an attach", func() bool {
		ok := vhdxfs(t, "attach", img).status == 0
		if !ok {
			command(program.path(t), "detach", img) // which the killed one has mounted
		}
		return ok
	})
	detachLeft(t, img)
}
