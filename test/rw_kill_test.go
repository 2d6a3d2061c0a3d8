package test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The program is killed while writers write, trim and sync. Whenever that is, the image is sound, and after the next
// mount, which replays its log, each sector is as the last acknowledged fsync left it, or as it was made since.
// The flag -kills says how often, for each kind of image.
func TestKill(t *testing.T) {
	t.Parallel()
	detectRaces(t)
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) { killed(t, v) })
	}
}

func killed(t *testing.T, v variant) {
	requireFUSE(t)
	requireTools(t, "fio")
	if os.Geteuid() != 0 {
		t.Skip("needs root, to unmount what is left behind")
	}
	img := v.create(t, killedDisk())
	writers := newKilledWriters(t, img, v.sector)

	rng := rand.New(rand.NewPCG(uint64(*kills), 9))
	replayed := 0
	for round := range *kills {
		// Many small commits in some rounds, none but the synced ones in others.
		s := serveToKill(t, img, "-o", []string{"commit=5", "commit=1,idle_clean=1", "commit=0,idle_clean=0"}[round%3])
		acknowledged := runUntilKilled(t, s, writers, 3+rng.IntN(60), v.sector)
		left := info(t, img).Log.State
		if left != "clean" {
			replayed++
		}
		if r := vhdxfs(t, "check", img); r.status != 0 && r.status != warningsStatus {
			t.Fatalf("kill %d: vhdxfs check: exit status %d\n%s%s", round, r.status, r.stdout, r.stderr)
		}
		repaired := repairedByQemu(t, v, img)

		// Read-only first: the log is replayed in memory, and no byte of the file changes.
		before := sha256File(t, img)
		ro := readOnly(t, img)
		seen := sha256File(t, ro.disk)
		ro.end(t)
		unchanged(t, img, before)

		again := serve(t, img)
		if repaired != "" {
			sameToQemu(t, repaired, "vhdx", again.disk)
			os.Remove(repaired)
		}
		if sum := sha256File(t, again.disk); sum != seen {
			t.Errorf("kill %d: the disk has digest %s, but %s when it was mounted read-only", round, sum, seen)
		}
		for _, w := range writers {
			if err := w.verify(again.disk); err != nil {
				t.Fatalf("kill %d, %d acknowledged fsyncs, log %s: %v", round, acknowledged, left, err)
			}
		}
		again.end(t)
		checkClean(t, img)
	}
	t.Logf("killed %d times, %d times with a log to replay", *kills, replayed)
	if *kills > 2 && replayed == 0 && v.name != "fixed" { // which has no metadata to change
		t.Error("there was never a log to replay")
	}
}

const (
	killedWriters = 4
	killedPart    = 5*mib + 64<<10 // bytes of the disk that each writer has for itself
	killedFio     = 8 * mib        // bytes of the disk behind these, for fio
)

func killedDisk() string { return fmt.Sprint(killedWriters*killedPart + killedFio) }

// serveToKill mounts img in a process that is to be killed, and which no cleanup expects to end well.
func serveToKill(t *testing.T, img string, options ...string) *served {
	t.Helper()
	s := launch(t, program.path(t), img, options...)
	t.Cleanup(s.kill)
	eventually(t, "the mount at "+s.dir, func() bool {
		if !s.running() {
			t.Fatalf("vhdxfs ended without a mount: %v\n%s", s.cmd.ProcessState, s.log.String())
		}
		_, ok := mountAt(s.dir)
		return ok
	})
	return s
}

// kill kills the process and takes away the mount that it leaves behind.
func (s *served) kill() {
	s.cmd.Process.Kill()
	<-s.done
	if _, mounted := mountAt(s.dir); mounted {
		command("umount", "--no-canonicalize", s.dir)
	}
}

// runUntilKilled lets the writers and fio write until so many fsyncs were acknowledged, and then kills the process
// that serves the disk. It returns when nobody writes any more.
func runUntilKilled(t *testing.T, s *served, writers []*killedWriter, fsyncs int, sector int64) int64 {
	t.Helper()
	var acknowledged atomic.Int64
	var killing atomic.Bool
	enough := make(chan struct{})
	var once sync.Once
	var running sync.WaitGroup
	for _, w := range writers {
		running.Go(func() {
			err := w.run(s.disk, func() {
				if acknowledged.Add(1) >= int64(fsyncs) {
					once.Do(func() { close(enough) })
				}
			})
			if !killing.Load() {
				t.Errorf("a writer failed before the kill: %v", err)
			}
		})
	}
	// It is there for the load, and takes it ill that its disk goes away.
	fio := exec.Command("fio", "--name=load", "--filename="+s.disk, "--allow_file_create=0", "--thread", "--aux-path="+root,
		fmt.Sprintf("--offset=%d", killedWriters*killedPart), fmt.Sprintf("--size=%d", killedFio), "--ioengine=libaio", "--direct=1",
		"--iodepth=8", "--rw=randwrite", fmt.Sprintf("--bsrange=%d-128k", sector), "--verify=crc32c", "--fsync=16", "--loops=1000")
	fio.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := fio.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() {
		running.Wait()
		close(stopped)
	}()
	select {
	case <-enough:
	case <-stopped: // by errors, while the process lives
		t.Error(s.log.String())
	}
	killing.Store(true)
	s.kill()
	<-stopped
	fio.Wait()
	// The first umount has failed if a writer still had the disk open.
	if _, mounted := mountAt(s.dir); mounted {
		unmount(t, s.dir)
	}
	checkLog(t, s.log.String())
	return acknowledged.Load()
}

// repairedByQemu returns a copy of the image whose log QEMU has replayed, or "" where QEMU does not know the kind.
func repairedByQemu(t *testing.T, v variant, img string) string {
	t.Helper()
	if v.child || v.sector != 512 {
		return ""
	}
	requireTools(t, "qemu-img")
	repaired := filepath.Join(t.TempDir(), "repaired.vhdx")
	must(t, "cp", "--sparse=always", img, repaired)
	must(t, "qemu-img", "check", "-r", "all", "-f", "vhdx", repaired)
	return repaired
}

// A killedWriter writes to its own part of the disk and knows what each sector of it may hold.
type killedWriter struct {
	begin  int64
	sector int64
	direct bool
	rng    *rand.Rand
	serial uint64
	may    [][]uint64 // by sector: what it may hold; first what is durable, then what was written since
	base   []byte     // what the disk held at first
	buf    []byte
}

// What a sector may hold, besides a serial number that stands for a pattern.
const (
	asAtFirst = 0
	zeroed    = 1
)

// newKilledWriters prepares the writers on the disk of an image that nobody has mounted.
func newKilledWriters(t *testing.T, img string, sector int64) (writers []*killedWriter) {
	t.Helper()
	s := serve(t, img)
	for i := range killedWriters {
		writers = append(writers, newKilledWriter(t, s.disk, i, sector))
	}
	s.end(t)
	return writers
}

func newKilledWriter(t *testing.T, disk string, i int, sector int64) *killedWriter {
	t.Helper()
	w := &killedWriter{
		begin: int64(i) * killedPart, sector: sector, direct: i%2 == 0,
		rng: rand.New(rand.NewPCG(uint64(i), 5)), serial: 100,
		may: make([][]uint64, killedPart/sector), base: readAt(t, disk, int64(i)*killedPart, killedPart), buf: aligned(t, mib),
	}
	for s := range w.may {
		w.may[s] = []uint64{asAtFirst}
	}
	return w
}

// pattern fills b, the sector s of this writer, with what the serial number stands for.
func (w *killedWriter) pattern(b []byte, s int64, serial uint64) {
	switch serial {
	case asAtFirst:
		copy(b, w.base[s*w.sector:])
		return
	case zeroed:
		clear(b)
		return
	}
	le := binary.LittleEndian
	le.PutUint64(b, serial)
	le.PutUint64(b[8:], uint64(w.begin/w.sector+s))
	for i := 16; i < len(b)-4; i += 8 {
		le.PutUint64(b[i:], serial*0x9E3779B97F4A7C15+uint64(i))
	}
	le.PutUint32(b[len(b)-4:], crc32.ChecksumIEEE(b[:len(b)-4]))
}

// run writes, trims and syncs until that fails, since the disk is gone.
func (w *killedWriter) run(disk string, acknowledge func()) error {
	flags := os.O_RDWR
	if w.direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(disk, flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		for range 1 + w.rng.IntN(6) {
			if err := w.change(f); err != nil {
				return err
			}
		}
		if err := f.Sync(); err != nil {
			return err
		}
		for s := range w.may {
			w.may[s] = append(w.may[s][:0], w.may[s][len(w.may[s])-1])
		}
		acknowledge()
	}
}

// change writes a pattern to some sectors or makes them zero.
func (w *killedWriter) change(f *os.File) error {
	const page = 4096 // what O_DIRECT and, below it, the kernel's cache are aligned to
	pages := int64(killedPart / page)
	at := w.rng.Int64N(pages)
	n := min(1+w.rng.Int64N(1<<w.rng.IntN(7)), pages-at)
	trim := w.rng.IntN(4) == 0
	if trim && w.rng.IntN(2) == 0 { // so much that there is a whole block in it
		n = min(n+3*mib/page, pages-at)
	}
	first, last := at*page/w.sector, (at+n)*page/w.sector
	w.serial++
	serial := w.serial
	if trim {
		serial = zeroed
	}
	for s := first; s < last; s++ {
		w.may[s] = append(w.may[s], serial)
	}
	if trim {
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, w.begin+at*page, n*page)
	}
	b := w.buf[:n*page]
	for s := first; s < last; s++ {
		w.pattern(b[(s-first)*w.sector:][:w.sector], s, serial)
	}
	_, err := f.WriteAt(b, w.begin+at*page)
	return err
}

// verify compares each sector with what it may hold. What it holds is durable from now on.
func (w *killedWriter) verify(disk string) error {
	f, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	got := make([]byte, killedPart)
	if _, err := f.ReadAt(got, w.begin); err != nil {
		return err
	}
	want := make([]byte, w.sector)
sectors:
	for s, may := range w.may {
		b := got[int64(s)*w.sector:][:w.sector]
		for _, serial := range may {
			w.pattern(want, int64(s), serial)
			if bytes.Equal(b, want) {
				w.may[s] = append(w.may[s][:0], serial)
				continue sectors
			}
		}
		if at, begin, end := w.torn(b, int64(s), may); at > 0 {
			return fmt.Errorf("sector %d is torn: up to byte %d it holds what serial number %d stands for, and from there on %d",
				w.begin/w.sector+int64(s), at, begin, end)
		}
		return fmt.Errorf("sector %d holds %x..., serial number %d; it may hold those of %v",
			w.begin/w.sector+int64(s), b[:16], binary.LittleEndian.Uint64(b), may)
	}
	return nil
}

// torn looks for two of what the sector s may hold that b is made of, and returns from where on it is the second.
func (w *killedWriter) torn(b []byte, s int64, may []uint64) (at int, begin, end uint64) {
	x, y := make([]byte, w.sector), make([]byte, w.sector)
	for _, begin := range may {
		w.pattern(x, s, begin)
		for at = 0; b[at] == x[at]; at++ { // they differ somewhere
		}
		for _, end := range may {
			if w.pattern(y, s, end); bytes.Equal(b[at:], y[at:]) && at > 0 {
				return at, begin, end
			}
		}
	}
	return 0, 0, 0
}
