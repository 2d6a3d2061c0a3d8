package cluster

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
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
	g, l := up(t), newLedger()
	img := g.image("idle.vhdx")
	a := g.mountWhenFree("a", img)
	t.Log(l.loadFor(t, a.disk, 1, 3*time.Second))
	time.Sleep(7 * time.Second) // until the image is clean
	g.link("a", "down")
	b := g.mountWhenFree("b", img)
	l.check(t, b.disk)
	t.Log(l.loadFor(t, b.disk, 2, 5*time.Second))
	g.link("a", "up")
	time.Sleep(10 * time.Second)
	w := l.load(t, b.disk, 3)
	takenOver(t, l, a, 4)
	if w.stop(); w.wrote == 0 || len(w.errs) > 0 {
		t.Errorf("the host that has the image: %v", w)
	}
	b.end()
	g.sound("b", img, l)
}

// The bricks are restarted one after the other, as by an update, under a writer.
func TestRolling(t *testing.T) {
	g, l := up(t), newLedger()
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
		t.Errorf("the writer: %v, the last %v", w, w.last)
	}
	a.end()
	g.sound("b", img, l)
}

// Two bricks of three are killed under a writer: the volume has no quorum.
func TestQuorum(t *testing.T) {
	g, l := up(t), newLedger()
	img := g.image("quorum.vhdx")
	a := g.mountWhenFree("a", img)
	w := l.load(t, a.disk, 1)
	time.Sleep(2 * time.Second)
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
	g, l := up(t), newLedger()
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
	for name, kill := range map[string]func(g *gluster, a *served){
		"program": func(g *gluster, a *served) { _ = a.cmd.Process.Kill() },
		"client": func(g *gluster, a *served) {
			for _, pid := range g.pids("a", "^[^ ]*glusterfs .*"+g.view("a")+" *$") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, l := up(t), newLedger()
			img := g.image("replay.vhdx")
			a := g.mountWhenFree("a", img)
			w := l.load(t, a.disk, 1)
			time.Sleep(4 * time.Second)
			kill(g, a)
			w.stop()
			t.Log(w)
			b := g.mountWhenFree("b", img)
			l.check(t, b.disk)
			t.Log(l.loadFor(t, b.disk, 2, time.Second))
			b.end()
			a.remove()
			g.sound("b", img, l)
		})
	}
}

// stop stops processes until the function that it returns is called, at the end of the test, or after two minutes: much else on a
// machine waits for the server of a mount that is stopped.
func (g *gluster) stop(pids []int) (resume func()) {
	resume = sync.OnceFunc(func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	})
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			g.t.Fatal(err)
		}
	}
	time.AfterFunc(2*time.Minute, resume)
	g.t.Cleanup(resume)
	return resume
}

// A host is suspended for a minute, cut off from the storage, in the middle of its writes.
func TestSuspend(t *testing.T) {
	g, l := up(t), newLedger()
	img := g.image("suspend.vhdx")
	a := g.mountWhenFree("a", img)
	w := l.load(t, a.disk, 1)
	time.Sleep(3 * time.Second)
	g.link("a", "down")
	began := time.Now()
	resume := g.stop(append(g.pids("a", "^[^ ]*glusterfs "), a.cmd.Process.Pid))
	b := g.mountWhenFree("b", img)
	l.check(t, b.disk)
	t.Log(l.loadFor(t, b.disk, 2, 3*time.Second))
	time.Sleep(time.Until(began.Add(time.Minute)))
	v := l.load(t, b.disk, 3)
	g.link("a", "up")
	resume()
	time.Sleep(5 * time.Second)
	t.Log(w.stop())
	takenOver(t, l, a, 4)
	if v.stop(); v.wrote == 0 || len(v.errs) > 0 {
		t.Errorf("the host that has the image: %v", v)
	}
	b.end()
	g.sound("b", img, l)
}

// Two hosts mount one image at the same moment, again and again.
func TestRace(t *testing.T) {
	g, l := up(t), newLedger()
	img := g.image("race.vhdx")
	won := map[string]int{}
	for range *races {
		var both sync.WaitGroup
		var in [2]*served
		for i, host := range []string{"a", "b"} {
			both.Go(func() { in[i] = g.mount(host, img) })
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
	g.sound("a", img, l)
}

// What vhdxfs knows of GlusterFS is what it finds there.
func TestProbe(t *testing.T) {
	g := up(t)
	out := must(t, program, "probe", "--json", g.view("a"), g.view("b"))
	var r struct {
		Type   string
		Shared bool
		Facts  []struct{ Name, Found, Known string }
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if r.Type != "fuse.glusterfs" || !r.Shared || len(r.Facts) == 0 {
		t.Errorf("the volume is taken for %+v", r)
	}
	for _, f := range r.Facts {
		if f.Known != "unknown" && f.Known != f.Found {
			t.Errorf("%s: found %s, known %s", f.Name, f.Found, f.Known)
		}
		t.Logf("%s: %s", f.Name, f.Found)
	}
	left, err := os.ReadDir(g.view("a"))
	if err != nil || len(left) > 1 { // .trashcan
		t.Errorf("left behind: %v, %v", left, err)
	}
}
