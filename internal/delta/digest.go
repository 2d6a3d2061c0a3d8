package delta

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

const (
	pieceSize = 1 << 20 // bytes
	unit      = 512     // bytes; sectors are a multiple of it
)

var zeros [pieceSize]byte

// A digest computes the digest of a delta. What the delta holds is added in the order of the disk.
type digest struct {
	h    hash.Hash
	size int64 // of the disk, bytes

	piece int64 // the number of the MiB that follows; -1 is none
	held  [pieceSize / unit / 8]byte
	n     int64 // bytes of it that are held
	b     []byte
}

func newDigest(size int64, id uuid.UUID) *digest {
	d := &digest{h: sha256.New(), size: size, piece: -1, b: make([]byte, pieceSize)}
	d.number(uint64(size)) // #nosec G115 -- the size of a disk
	d.h.Write(id[:])
	return d
}

func (d *digest) number(n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	d.h.Write(b[:])
}

// data adds bytes of the disk that the delta holds.
func (d *digest) data(off int64, p []byte) {
	for len(p) > 0 {
		n := d.hold(off, int64(len(p)))
		copy(d.b[off%pieceSize:], p[:n])
		off, p = off+n, p[n:]
	}
}

// zero adds bytes that the delta holds as zeros.
func (d *digest) zero(off, n int64) {
	for n > 0 {
		step := d.hold(off, n)
		off, n = off+step, n-step
	}
}

// hold notes up to n bytes from off on, as far as they are in one MiB, and returns how many.
func (d *digest) hold(off, n int64) int64 {
	if piece := off / pieceSize; piece != d.piece {
		d.flush()
		d.piece = piece
	}
	in := off % pieceSize
	n = min(n, pieceSize-in)
	for i := in / unit; i < (in+n+unit-1)/unit; i++ {
		d.held[i/8] |= 1 << (i % 8)
	}
	d.n += n
	return n
}

// flush adds the MiB that is complete.
func (d *digest) flush() {
	if d.piece < 0 {
		return
	}
	d.number(uint64(d.piece)) // #nosec G115 -- not below zero
	if d.n == min(pieceSize, d.size-d.piece*pieceSize) && string(d.b) == string(zeros[:]) {
		d.h.Write([]byte{1})
	} else {
		d.h.Write([]byte{0})
		d.h.Write(d.held[:])
		d.h.Write(d.b)
		clear(d.b)
	}
	clear(d.held[:])
	d.n, d.piece = 0, -1
}

func (d *digest) sum() (s [vhdx.DigestSize]byte) {
	d.flush()
	return [vhdx.DigestSize]byte(d.h.Sum(nil))
}
