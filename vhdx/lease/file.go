package lease

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A File is an image file under a lease. Each change through it begins only while the lease is confirmed, or fails with the error of
// Check. What goes into the headers is remembered, to be compared with what is found there. Once another host has the image, reads
// fail, too. Any number of goroutines may use it.
type File struct {
	imagefile.File
	*Lease

	Before ondisk.Header // that counted before the lease was taken
	Waited bool          // another host may have written while it was taken
}

func (l *Lease) wrap(f imagefile.File) *File {
	w := &File{File: f, Lease: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.handles[w] = struct{}{}
	return w
}

// Header returns the header that counts now, and its place.
func (f *File) Header() (ondisk.Header, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.header, f.slot
}

// checked does a change if it may begin.
func (f *File) checked(do func() error) error {
	if err := f.Check(); err != nil {
		return err
	}
	return do()
}

func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if err := f.Err(); err != nil {
		return 0, err
	}
	return f.File.ReadAt(p, off)
}

// Fd returns no descriptor any more once another host has the image.
func (f *File) Fd() (uintptr, bool) {
	if f.Err() != nil {
		return 0, false
	}
	return f.File.Fd()
}

// headersEnd is where the place of the second header ends.
const headersEnd = 192 * ondisk.KiB

func (f *File) WriteAt(p []byte, off int64) (n int, err error) {
	if off < headersEnd && off+int64(len(p)) > ondisk.HeaderOffsets[0] {
		return f.writeHeader(p, off)
	}
	if err := f.Check(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

// writeHeader writes one header, as both are read and compared at no moment at which it is under way.
func (f *File) writeHeader(p []byte, off int64) (int, error) {
	slot := 0
	if off == ondisk.HeaderOffsets[1] {
		slot = 1
	}
	if off != ondisk.HeaderOffsets[slot] || len(p) != ondisk.HeaderSize {
		return 0, fmt.Errorf("%d bytes at %#x are no header", len(p), off)
	}
	h, decodeErr := ondisk.DecodeHeader((*[ondisk.HeaderSize]byte)(p), off) // what is restored may be damaged
	for {
		if err := f.Check(); err != nil {
			return 0, err
		}
		f.mu.Lock()
		if f.Fresh() {
			break
		}
		f.mu.Unlock() // it has waited for too long
	}
	defer f.mu.Unlock()
	f.may[slot] = append(f.may[slot], append([]byte(nil), p...))
	n, err := f.File.WriteAt(p, off)
	if err != nil {
		f.failed[slot]++
		f.unsure = f.unsure || !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT)
		// The other header may be the only one that tells of the last change, and the mark of another host may have come into its
		// place since it was read last. Nothing that rests on it is told durable before it was read again.
		f.confirmed.Store(int64(never))
		return n, err
	}
	f.failed[slot] = 0
	if decodeErr == nil {
		f.header, f.slot = h, slot
	}
	return n, nil
}

// Sync makes durable what was written, and tells so only if the image was still this host's when it was.
func (f *File) Sync() error {
	if err := f.Check(); err != nil {
		return err
	}
	newest := f.newest()
	if err := f.File.Sync(); err != nil {
		f.mu.Lock()
		f.unsure = true
		f.mu.Unlock()
		return err
	}
	f.settled(newest)
	return f.Check()
}

// newest returns the number of the newest content of each header that was written without an error. A sync of a later one that
// was not leaves open which of them is there.
func (f *File) newest() (n [2]int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range n {
		n[i] = f.dropped[i] + len(f.may[i]) - 1 - f.failed[i]
	}
	return n
}

// settled forgets what the headers cannot hold any more, after a sync of what had these numbers.
func (f *File) settled(n [2]int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range n {
		if old := n[i] - f.dropped[i]; old > 0 {
			f.may[i], f.dropped[i] = f.may[i][old:], n[i]
		}
	}
}

func (f *File) Truncate(size int64) error {
	return f.checked(func() error { return f.File.Truncate(size) })
}

func (f *File) PunchHole(off, n int64) error {
	return f.checked(func() error { return f.File.PunchHole(off, n) })
}

func (f *File) Allocate(off, n int64) error {
	return f.checked(func() error { return f.File.Allocate(off, n) })
}

func (f *File) ZeroRange(off, n int64) error {
	return f.checked(func() error { return f.File.ZeroRange(off, n) })
}

func (f *File) Clone(off int64, src imagefile.File, srcOff, n int64) error {
	return f.checked(func() error { return f.File.Clone(off, src, srcOff, n) })
}

// Named returns another descriptor of the same open file, under the same lease.
func (f *File) Named(path string) (imagefile.File, error) {
	other, err := f.File.Named(path)
	if err != nil {
		return nil, err
	}
	w := f.wrap(other)
	w.Before, w.Waited = f.Before, f.Waited
	return w, nil
}

// Share releases the lease, for a file that is only read from now on.
func (f *File) Share() error {
	return errors.Join(f.giveUp(), f.File.Share())
}

// Close closes this descriptor, and releases the lease with the last one.
func (f *File) Close() error {
	f.mu.Lock()
	delete(f.handles, f)
	last := len(f.handles) == 0
	if f.Lease.file == f.File {
		for other := range f.handles {
			f.Lease.file = other.File
			break
		}
	}
	f.mu.Unlock()
	if last {
		return errors.Join(f.giveUp(), f.File.Close())
	}
	return f.File.Close()
}

// giveUp ends the lease. The headers say so if they can: if the image is clean, and nothing has failed. Else the next writer has
// to wait.
func (l *Lease) giveUp() (err error) {
	_ = l.Check() // where it is confirmed, the headers can be written; why it is not is known to whoever has changed something
	l.mu.Lock()
	l.given = true
	if l.Fresh() && !l.unsure && !l.keep && !l.header.Dirty() {
		if err = l.release(l.header, l.slot); err != nil {
			err = fmt.Errorf("%s: cannot record that the image is closed, so the next writer must wait: %w", l.o.Path, err)
		}
	}
	l.confirmed.Store(int64(never))
	beating := l.beating
	l.beating = false
	l.mu.Unlock()
	if beating {
		close(l.quit)
		<-l.ended
	}
	return err
}
