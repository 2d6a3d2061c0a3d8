package cluster

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// takenOver has a writer on a host that lost its image try to write, which has to fail.
func takenOver(t *testing.T, l *ledger, s *served, writer uint64) {
	t.Helper()
	if w := l.loadFor(t, s.disk, writer, 2*time.Second); w.wrote != 0 || w.errs[syscall.EIO] == 0 {
		t.Errorf("the host that lost the image: %v; want EIO for each\n%s", w, s.text())
	}
	if !strings.Contains(s.text(), "was taken over by another host (") {
		t.Errorf("the host that lost the image does not say so:\n%s", s.text())
	}
	if s.end() {
		t.Error("the mount that lost its image ends well")
	}
}

// A host is cut off while it has nothing to do, another one takes over, and the first one comes back.
func TestIdle(t *testing.T) {
	c, l := up(t), newLedger()
	img := c.image("idle.vhdx")
	a := c.mountWhenFree("a", img)
	w := l.load(t, a.disk, 1)
	time.Sleep(3 * time.Second)
	l.await(t)
	t.Log(w.stop())
	time.Sleep(7 * time.Second) // until the image is clean
	c.link("a", "down")
	b := c.mountWhenFree("b", img)
	l.check(t, b.disk)
	t.Log(l.loadFor(t, b.disk, 2, 5*time.Second))
	c.link("a", "up")
	time.Sleep(10 * time.Second)
	w = l.load(t, b.disk, 3)
	takenOver(t, l, a, 4)
	if w.stop(); w.wrote == 0 || len(w.errs) > 0 {
		t.Errorf("the host that has the image: %v", w)
	}
	b.end()
	c.sound("b", img, l)
}

// The bricks are restarted one after the other, as by an update, under a writer.
func TestRolling(t *testing.T) {
	g, l := upGluster(t), newLedger()
	img := g.image("rolling.vhdx")
	a := g.mountWhenFree("a", img)
	w := l.load(t, a.disk, 1)
	for i := range g.servers {
		g.killBrick(i)
		time.Sleep(3 * time.Second)
		g.startBricks()
		if b := g.mount("b", img); b != nil {
			t.Errorf("after brick %d was restarted, the other host mounts, too", i+1)
			t.Log(l.loadFor(t, b.disk, 2, 2*time.Second))
			b.end()
		}
	}
	w.stop()
	t.Log(w)
	if len(w.errs) > 0 {
		t.Errorf("the writer: %v", w)
	}
	a.end()
	g.sound("b", img, l)
}

// Two bricks of three are killed under a writer: the volume has no quorum.
func TestQuorum(t *testing.T) {
	g, l := upGluster(t), newLedger()
	img := g.image("quorum.vhdx")
	a := g.mountWhenFree("a", img)
	w := l.load(t, a.disk, 1)
	time.Sleep(2 * time.Second)
	l.await(t)
	g.killBrick(1)
	g.killBrick(2)
	time.Sleep(8 * time.Second)
	g.startBricks()
	time.Sleep(2 * time.Second)
	t.Log(w.stop())
	a.end()
	b := g.mountWhenFree("b", img)
	l.check(t, b.disk)
	if w := l.loadFor(t, b.disk, 2, time.Second); len(w.errs) > 0 {
		t.Errorf("the volume is back, and the next writer has %v", w)
	}
	b.end()
	g.sound("a", img, l)
}

// The volume runs full under a writer, and has room again.
func TestFull(t *testing.T) {
	g, l := upGluster(t), newLedger()
	img := g.image("full.vhdx")
	a := g.mountWhenFree("a", img)
	t.Log(l.loadFor(t, a.disk, 1, time.Second))
	ballast := filepath.Join(g.view("a"), "ballast")
	var st syscall.Statfs_t
	if err := syscall.Statfs(g.view("a"), &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-8<<20); err != nil {
		t.Fatal(err)
	}
	for _, err = f.Seek(0, io.SeekEnd); err == nil; { // up to the last byte
		_, err = f.Write(make([]byte, 64<<10))
		if err == nil {
			err = f.Sync()
		}
	}
	f.Close()
	w := l.loadFor(t, a.disk, 1, 8*time.Second)
	t.Log(w)
	if w.errs[syscall.ENOSPC] == 0 {
		t.Errorf("on the full volume: %v; want ENOSPC", w)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the writer has room again", func() bool { return l.loadFor(t, a.disk, 1, time.Second).wrote > 0 })
	a.end()
	g.sound("b", img, l)
}

// The program, or the client of the storage, is killed under a writer, and another host takes over.
func TestReplay(t *testing.T) {
	for name, kill := range map[string]func(c *cluster, a *served){
		"program": func(c *cluster, a *served) { _ = a.cmd.Process.Kill() },
		"client": func(c *cluster, a *served) {
			for _, pid := range c.client("a") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "client" && *storage != "gluster" {
				t.Skip("the kernel is the client")
			}
			c, l := up(t), newLedger()
			img := c.image("replay.vhdx")
			a := c.mountWhenFree("a", img)
			w := l.load(t, a.disk, 1)
			time.Sleep(4 * time.Second)
			l.await(t)
			kill(c, a)
			w.stop()
			t.Log(w)
			b := c.mountWhenFree("b", img)
			l.check(t, b.disk)
			t.Log(l.loadFor(t, b.disk, 2, time.Second))
			b.end()
			a.remove()
			c.sound("b", img, l)
		})
	}
}

// stop stops processes until the function that it returns is called, at the end of the test, or after two minutes: much else on a
// machine waits for the server of a mount that is stopped.
func (c *cluster) stop(pids []int) (resume func()) {
	resume = sync.OnceFunc(func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	})
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			c.t.Fatal(err)
		}
	}
	time.AfterFunc(2*time.Minute, resume)
	c.t.Cleanup(resume)
	return resume
}

// A host is suspended for a minute, cut off from the storage, in the middle of its writes.
func TestSuspend(t *testing.T) {
	c, l := up(t), newLedger()
	img := c.image("suspend.vhdx")
	a := c.mountWhenFree("a", img)
	w := l.load(t, a.disk, 1)
	time.Sleep(3 * time.Second)
	l.await(t)
	c.link("a", "down")
	began := time.Now()
	pids := []int{a.cmd.Process.Pid}
	if c.client != nil {
		pids = append(pids, c.client("a")...)
	}
	resume := c.stop(pids)
	b := c.mountWhenFree("b", img)
	l.check(t, b.disk)
	t.Log(l.loadFor(t, b.disk, 2, 3*time.Second))
	time.Sleep(time.Until(began.Add(time.Minute)))
	v := l.load(t, b.disk, 3)
	c.link("a", "up")
	resume()
	time.Sleep(5 * time.Second)
	t.Log(w.stop())
	takenOver(t, l, a, 4)
	if v.stop(); v.wrote == 0 || len(v.errs) > 0 {
		t.Errorf("the host that has the image: %v", v)
	}
	b.end()
	c.sound("b", img, l)
}

// Two hosts mount one image at the same moment, again and again.
func TestRace(t *testing.T) {
	c, l := up(t), newLedger()
	img := c.image("race.vhdx")
	won := map[string]int{}
	for range *races {
		var both sync.WaitGroup
		var in [2]*served
		for i, host := range []string{"a", "b"} {
			both.Go(func() { in[i] = c.mount(host, img) })
		}
		both.Wait()
		switch {
		case in[0] != nil && in[1] != nil:
			t.Fatal("both hosts have the image")
		case in[0] == nil && in[1] == nil:
			won["neither"]++
			continue
		}
		for i, host := range []string{"a", "b"} {
			if in[i] != nil {
				won[host]++
				l.loadFor(t, in[i].disk, uint64(i+1), 20*time.Millisecond)
				in[i].end()
			}
		}
	}
	t.Logf("in: %v", won)
	if won["a"]+won["b"] == 0 {
		t.Error("no host was ever in")
	}
	c.sound("a", img, l)
}

// What vhdxfs relies on of a storage is what it finds there.
func TestProbe(t *testing.T) {
	c := up(t)
	before := names(t, c.view("a"))
	out := must(t, program, "probe", "--json", c.view("a"), c.view("b"))
	var r struct {
		Type   string
		Shared bool
		Facts  []struct{ Name, Found, Known string }
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Type != storages[*storage].fsType || !r.Shared || len(r.Facts) == 0 {
		t.Errorf("the storage is taken for %+v", r)
	}
	for _, f := range r.Facts {
		if f.Known == "yes" && f.Found != "yes" { // what is not relied on may still be there
			t.Errorf("%s: found %s, known %s", f.Name, f.Found, f.Known)
		}
		t.Logf("%s: found %s, known %s", f.Name, f.Found, f.Known)
	}
	if after := names(t, c.view("a")); !slices.Equal(before, after) {
		t.Errorf("the directory has %q; it had %q", after, before)
	}
}

// names returns what a directory holds.
func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// The second host is refused as long as the first one has the image, and gets it at once when that is closed.
func TestRefused(t *testing.T) {
	c, l := up(t), newLedger()
	c.requireLocks()
	img := c.image("refused.vhdx")
	a := c.mountWhenFree("a", img)
	w := l.load(t, a.disk, 1)
	for range 3 {
		if b := c.mount("b", img); b != nil {
			t.Error("both hosts have the image")
			b.end()
		}
		if b := c.mount("b", img, "-o", "ro"); b != nil {
			t.Error("a host reads an image that the other one writes")
			b.end()
		}
		time.Sleep(time.Second)
	}
	if w.stop(); w.wrote == 0 || len(w.errs) > 0 {
		t.Errorf("the host that has the image: %v", w)
	}
	if !a.end() {
		t.Errorf("the first host: %s", a.text())
	}
	b := c.mount("b", img)
	if b == nil {
		t.Fatal("the image is closed, and the second host is refused")
	}
	l.check(t, b.disk)
	b.end()
	c.sound("a", img, l)
}

// Both hosts have a child of one parent, at the same time. No host can write the parent meanwhile, and none changes it.
func TestReaders(t *testing.T) {
	c, l := up(t), newLedger()
	gold := c.image("gold.vhdx")
	a := c.mountWhenFree("a", gold)
	t.Log(l.loadFor(t, a.disk, 1, 3*time.Second))
	a.end()
	before := must(t, "sha256sum", filepath.Join(c.view("a"), gold))
	var disks [2]*served
	var ledgers [2]*ledger
	var loads [2]*loader
	for i, host := range []string{"a", "b"} {
		child := host + ".avhdx"
		must(t, program, "create", "--parent", filepath.Join(c.view(host), gold), filepath.Join(c.view(host), child))
		disks[i], ledgers[i] = c.mountWhenFree(host, child), l.clone()
		ledgers[i].check(t, disks[i].disk)
	}
	for i := range disks {
		loads[i] = ledgers[i].load(t, disks[i].disk, uint64(i+2))
	}
	if c.locks {
		if s := c.mount("a", gold); s != nil {
			t.Error("a host writes the parent of a disk in use")
			s.end()
		}
	}
	time.Sleep(5 * time.Second)
	for i, w := range loads {
		if w.stop(); w.wrote == 0 || len(w.errs) > 0 {
			t.Errorf("child %d: %v", i+1, w)
		}
		ledgers[i].check(t, disks[i].disk)
		if !disks[i].end() {
			t.Errorf("child %d: %s", i+1, disks[i].text())
		}
	}
	for i, host := range []string{"b", "a"} { // the other one reads what each has written
		c.sound(host, []string{"a", "b"}[i]+".avhdx", ledgers[i])
	}
	if after := must(t, "sha256sum", filepath.Join(c.view("a"), gold)); after != before {
		t.Error("the parent has changed")
	}
}

// Where no lock leaves the host, a mount that relies on locks alone is refused, or says so; and with a lease only one of two hosts
// that are alive has the image. What the one that loses it wrote last, and did not sync, is on the storage before the other one
// writes.
func TestOwnLocks(t *testing.T) {
	c, l := up(t), newLedger()
	if c.locks {
		t.Skip("other hosts see the locks of this storage")
	}
	img := c.image("own.vhdx")
	option := storages[*storage].ownLocks
	for mode, want := range map[string]string{"on": "has no locks that other hosts see (it is mounted with " + option + ")", "try": "has no locks"} {
		s, ok := c.tryMount("a", img, "-o", "lock="+mode)
		if ok != (mode == "try") {
			t.Errorf("lock=%s: it is mounted: %t", mode, ok)
		}
		if ok {
			s.end()
		}
		if !strings.Contains(s.text(), want) {
			t.Errorf("lock=%s: the message is:\n%s", mode, s.text())
		}
	}

	a := c.mountWhenFree("a", img)
	t.Log(l.loadFor(t, a.disk, 1, 3*time.Second))
	w := l.loadUnsynced(t, a.disk, 2)
	b := c.mountWhenFree("b", img)
	if w.stop(); w.wrote == 0 || w.errs[syscall.EIO] == 0 {
		t.Errorf("the host that lost the image: %v; want EIO in the end", w)
	}
	l.fill(t, b.disk, 3)
	time.Sleep(40 * time.Second) // longer than the kernel keeps what was written
	l.check(t, b.disk)
	takenOver(t, l, a, 4)
	l.check(t, b.disk)
	b.end()
	c.sound("a", img, l)
}

// What one host writes while it does not reach a server, the other one sees, also by a file that it has had open before: so it sees
// that it has lost its lease.
func TestPartlyCutOff(t *testing.T) {
	const files = 12 // of some, the client reads from the server that is not reached
	g := upGluster(t)
	for _, option := range documentedOptions(t) {
		g.must(append([]string{"volume", "set", "v"}, strings.Fields(option)...)...)
	}
	write := func(i int, number uint64) {
		f, err := os.OpenFile(filepath.Join(g.view("a"), fmt.Sprint(i)), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(record{1, uint64(i), number}.page(), slotStride); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	var seen []imagefile.File
	see := func(number uint64) {
		t.Helper()
		for i, f := range seen {
			b := make([]byte, recordSize)
			if _, err := f.ReadFresh(b, slotStride); err != nil {
				t.Fatal(err)
			}
			if r, err := recordIn(b); err != nil || r.number != number {
				t.Errorf("file %d holds number %d, %v; want %d", i, r.number, err, number)
			}
		}
	}
	for i := range files {
		write(i, 1)
		f, err := imagefile.Open(filepath.Join(g.view("b"), fmt.Sprint(i)), os.O_RDWR)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		seen = append(seen, f)
	}
	see(1)
	ip(t, "-n", g.netns("a"), "route", "add", "blackhole", address("s1")+"/32")
	eventually(t, "a does not reach the server", func() bool { return g.reached("a") == len(g.servers)-1 })
	for i := range files {
		write(i, 2)
	}
	time.Sleep(2 * time.Second) // names are remembered for a second
	see(2)
	time.Sleep(4 * time.Second)
	see(2)
}

// documentedOptions returns the options of a volume that docs/cluster.md asks for.
func documentedOptions(t *testing.T) (options []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/cluster.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if option, ok := strings.CutPrefix(line, "    gluster volume set V "); ok {
			options = append(options, option)
		}
	}
	if len(options) == 0 {
		t.Fatal("docs/cluster.md names no options")
	}
	return options
}
