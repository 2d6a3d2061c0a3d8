package cluster

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// The load: each slot of the disk is a page that holds a record. A write is told to be durable, and remembered as such, when a
// sync has returned. What a slot may hold is then that record, or a later one that was tried.
const (
	recordSize = 4 << 10
	slotStride = 1 << 20 // bytes of the disk from slot to slot, so that most writes map a block
	slots      = 300
)

// A record says who wrote which slot, and in which order. Its page is filled by it, with a checksum at the end.
type record struct{ writer, slot, number uint64 }

func (r record) page() []byte {
	b := aligned()
	for i := 0; i < recordSize-8; i += 24 {
		var w [24]byte
		binary.LittleEndian.PutUint64(w[:], r.writer)
		binary.LittleEndian.PutUint64(w[8:], r.slot)
		binary.LittleEndian.PutUint64(w[16:], r.number)
		copy(b[i:recordSize-8], w[:])
	}
	binary.LittleEndian.PutUint32(b[recordSize-4:], crc32.ChecksumIEEE(b[:recordSize-4]))
	return b
}

// recordIn returns the record in a page. A page of zeros is the zero record.
func recordIn(b []byte) (r record, err error) {
	if bytes.Equal(b, make([]byte, recordSize)) {
		return r, nil
	}
	r = record{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])}
	if !bytes.Equal(r.page(), b) {
		return r, errors.New("no record")
	}
	return r, nil
}

// aligned returns a page of memory for O_DIRECT.
func aligned() []byte {
	b := make([]byte, 2*recordSize)
	skip := recordSize - int(uintptr(unsafe.Pointer(&b[0]))%recordSize)
	return b[skip:][:recordSize]
}

// A ledger remembers what the writers of one disk were told.
type ledger struct {
	mu     sync.Mutex // guards what follows
	synced map[uint64]record
	tried  map[uint64]map[record]bool // since the last one that was synced
	next   uint64
	count  int // of syncs
}

func newLedger() *ledger {
	return &ledger{synced: make(map[uint64]record), tried: make(map[uint64]map[record]bool)}
}

func (l *ledger) try(writer uint64, slot uint64) record {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	r := record{writer, slot, l.next}
	if l.tried[slot] == nil {
		l.tried[slot] = make(map[record]bool)
	}
	l.tried[slot][r] = true
	return r
}

func (l *ledger) sync(r record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.synced[r.slot] = r
	l.count++
	clear(l.tried[r.slot])
}

// await waits until a few writes are durable: on a slow machine, the first one takes its time.
func (l *ledger) await(t *testing.T) {
	t.Helper()
	eventually(t, "writes are durable", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.count >= 5
	})
}

// A loader writes to a disk until it is stopped.
type loader struct {
	quit, done chan struct{}
	wrote      int
	errs       map[syscall.Errno]int
}

// load has a writer write to random slots, with a sync after each write. It goes on after errors.
func (l *ledger) load(t *testing.T, disk string, writer uint64) *loader {
	t.Helper()
	return l.loadBy(t, disk, writer, true)
}

// loadUnsynced is load without syncs: what it writes may be there or not.
func (l *ledger) loadUnsynced(t *testing.T, disk string, writer uint64) *loader {
	t.Helper()
	return l.loadBy(t, disk, writer, false)
}

// loadBy has another process write. A process that is started from one that has a disk open closes that, and waits for the server of
// the disk if it is being written. So this one could start nothing while that server is stopped, not even what lets it continue.
func (l *ledger) loadBy(t *testing.T, disk string, writer uint64, sync bool) *loader {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), loaderDisk+"="+disk)
	orders, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w := &loader{quit: make(chan struct{}), done: make(chan struct{}), errs: make(map[syscall.Errno]int)}
	opened := make(chan error)
	go func() {
		defer close(w.done)
		defer cmd.Wait()
		defer orders.Close()
		_, err := answer(answers)
		if opened <- err; err == nil {
			l.order(w, orders, answers, writer, sync)
		}
	}()
	if err := <-opened; err != nil {
		t.Fatalf("%s: %v", disk, err)
	}
	return w
}

// order has the process of w write until w is stopped.
func (l *ledger) order(w *loader, orders io.Writer, answers io.Reader, writer uint64, sync bool) {
	rng := rand.New(rand.NewPCG(writer, 7))
	for {
		select {
		case <-w.quit:
			return
		default:
		}
		r := l.try(writer, rng.Uint64N(slots))
		_ = binary.Write(orders, binary.LittleEndian, order{r.writer, r.slot, r.number, sync})
		errno, err := answer(answers)
		if err == nil {
			if w.wrote++; sync {
				l.sync(r)
			}
			continue
		}
		w.errs[errno]++
		time.Sleep(100 * time.Millisecond)
	}
}

// An order is what the process of a loader reads for each record.
type order struct {
	Writer, Slot, Number uint64
	Sync                 bool
}

// answer reads what became of an order, or of the disk that was to be opened. The number is 0 where no answer comes.
func answer(r io.Reader) (errno syscall.Errno, err error) {
	var n uint32
	if err := binary.Read(r, binary.LittleEndian, &n); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, nil
	}
	return syscall.Errno(n), syscall.Errno(n)
}

// obeyOrders is the process of a loader. It ends with its input.
func obeyOrders(disk string) {
	tell := func(err error) {
		var errno syscall.Errno
		if err != nil && !errors.As(err, &errno) {
			errno = syscall.EIO
		}
		_ = binary.Write(os.Stdout, binary.LittleEndian, uint32(errno))
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	tell(err)
	for {
		var o order
		if err := binary.Read(os.Stdin, binary.LittleEndian, &o); err != nil {
			return
		}
		_, err := f.WriteAt(record{o.Writer, o.Slot, o.Number}.page(), int64(o.Slot)*slotStride)
		if err == nil && o.Sync {
			err = f.Sync()
		}
		tell(err)
	}
}

// stop ends the writer. Fields of w are settled then.
func (w *loader) stop() *loader {
	close(w.quit)
	<-w.done
	return w
}

func (w *loader) String() string {
	return fmt.Sprintf("%d writes succeeded, errors %v", w.wrote, w.errs)
}

// loadFor writes for a while.
func (l *ledger) loadFor(t *testing.T, disk string, writer uint64, d time.Duration) *loader {
	t.Helper()
	w := l.load(t, disk, writer)
	time.Sleep(d)
	return w.stop()
}

// fill writes a record to each slot, and syncs them all.
func (l *ledger) fill(t *testing.T, disk string, writer uint64) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []record
	for slot := range uint64(slots) {
		r := l.try(writer, slot)
		if _, err := f.WriteAt(r.page(), int64(slot)*slotStride); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		l.sync(r)
	}
}

// clone returns a ledger for a disk that holds what this one does.
func (l *ledger) clone() *ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := newLedger()
	c.next = l.next
	maps.Copy(c.synced, l.synced)
	for slot, tried := range l.tried {
		c.tried[slot] = maps.Clone(tried)
	}
	return c
}

// check compares the disk with what its writers were told.
func (l *ledger) check(t *testing.T, disk string) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDONLY|syscall.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	wrong := 0
	for slot := range uint64(slots) {
		b := aligned()
		if _, err := f.ReadAt(b, int64(slot)*slotStride); err != nil {
			t.Fatal(err)
		}
		got, err := recordIn(b)
		want := l.synced[slot]
		if err != nil || got != want && !l.tried[slot][got] {
			if wrong++; wrong <= 5 {
				t.Errorf("slot %d holds %+v (%v); %+v was synced", slot, got, err, want)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d slots are wrong", wrong, slots)
	}
}
