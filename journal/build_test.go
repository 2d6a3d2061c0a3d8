package journal

import (
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

var (
	thisSession  = uuid.MustParse("11223344-5566-7788-99AA-BBCCDDEEFF00")
	otherSession = uuid.MustParse("00112233-4455-6677-8899-AABBCCDDEEFF")
)

// Where the test images have their log, and what the log may write to. In bytes.
const (
	logOffset  = 1 << 20
	dataOffset = logOffset + 64<<20
)

// An image is a file with a log that a test fills.
type image struct {
	*sparseFile
	reg Region
	pos int64  // where the next entry goes
	seq uint64 // which number it gets
}

// newImage returns an image of dataOffset + 1 MiB bytes, of which the last MiB is not zero, with an empty
// log.
func newImage(sectors int64) *image {
	im := &image{
		sparseFile: newSparseFile(nil),
		reg:        Region{Offset: logOffset, Length: sectors * SectorSize, GUID: thisSession},
		seq:        100,
	}
	im.size = dataOffset + 1<<20
	for off := int64(dataOffset); off < im.size; off += SectorSize {
		im.pages[off] = filled(0xEE)
	}
	return im
}

// filled returns a page whose bytes are all different from those of one filled with another b.
func filled(b byte) *[SectorSize]byte {
	var p [SectorSize]byte
	for i := range p {
		p[i] = b ^ byte(i*7)&0x0F
	}
	return &p
}

// data returns an update of the nth page of the data.
func data(n int, b byte) Update {
	return Update{FileOffset: dataOffset + uint64(n)*SectorSize, Data: filled(b)}
}

// zero returns an update that wipes pages of the data from the nth on.
func zero(n, pages int) Update {
	return Update{FileOffset: dataOffset + uint64(n)*SectorSize, ZeroLength: uint64(pages) * SectorSize}
}

// put writes the bytes b of an entry at position pos, around the end of the ring.
func (im *image) put(b []byte, pos int64) {
	for ; len(b) > 0; b, pos = b[SectorSize:], pos+SectorSize {
		im.WriteAt(b[:SectorSize], im.reg.at(pos))
	}
}

// entry appends an entry with the next sequence number and the given tail, and returns its position.
func (im *image) entry(tail int64, u ...Update) int64 {
	return im.custom(Entry{LogGUID: thisSession, Tail: uint32(tail), Updates: u})
}

// self is the tail of an entry that names itself.
const (
	self   = -1
	noTail = 1<<32 - 1
)

// custom appends e; the image supplies the sequence number.
func (im *image) custom(e Entry) int64 {
	pos := im.pos
	e.SequenceNumber = im.seq
	if e.Tail == noTail {
		e.Tail = uint32(pos)
	}
	im.put(AppendEntry(nil, &e), pos)
	im.seq++
	im.pos = (pos + e.Length()) % im.reg.Length
	return pos
}

// damage changes the first entry, at position 0, and stamps its checksum anew unless the damage is to that.
func (im *image) damage(change func(b []byte), stamp bool) {
	b := make([]byte, im.reg.Length)
	im.ReadAt(b, im.reg.Offset)
	n := le.Uint32(b[8:])
	change(b)
	if stamp {
		le.PutUint32(b[4:], ondisk.Checksum(b[:n], 4))
	}
	im.WriteAt(b, im.reg.Offset)
}

// find is Find on an image that must have an active sequence.
func (im *image) find(t *testing.T) *Sequence {
	t.Helper()
	s, err := Find(im, im.reg)
	if err != nil {
		t.Fatalf("Find: %v", err)
	}
	return s
}

// wantRule fails unless err names rule r.
func wantRule(t *testing.T, err error, r ondisk.Rule) {
	t.Helper()
	var fe *ondisk.FormatError
	if !errors.As(err, &fe) || fe.Rule != r || !errors.Is(err, ondisk.ErrCorrupt) {
		t.Fatalf("error %v, want one of %v", err, r)
	}
}

// replay returns the image as Apply leaves it, having made sure that an overlay reads the same.
func (im *image) replay(t *testing.T) *sparseFile {
	t.Helper()
	s := im.find(t)
	before := im.clone()
	v, err := NewOverlay(im, im.size, s)
	if err != nil {
		t.Fatalf("NewOverlay: %v", err)
	}
	after := im.clone()
	s, err = Find(after, im.reg)
	if err != nil {
		t.Fatalf("Find in the copy: %v", err)
	}
	if err := Apply(after, s); err != nil {
		t.Fatalf("Apply: %v", err)
	}
	if after.syncs != 1 {
		t.Errorf("Apply synced %d times, want once", after.syncs)
	}
	if v.Size() != after.size {
		t.Fatalf("overlay has %d bytes, the file that was replayed %d", v.Size(), after.size)
	}
	sameFile(t, v, after, after.size, pagesOf(after, before), newRand(1))
	if im.size != before.size {
		t.Errorf("overlay changed the size of the file from %d to %d", before.size, im.size)
	}
	sameFile(t, im, before, before.size, pagesOf(im.sparseFile, before), newRand(1))
	return after
}

// wantPage fails unless the nth page of the data is filled with b, or zero if b is 0.
func wantPage(t *testing.T, f *sparseFile, n int, b byte) {
	t.Helper()
	var got, want [SectorSize]byte
	if b != 0 {
		want = *filled(b)
	}
	if _, err := f.ReadAt(got[:], dataOffset+int64(n)*SectorSize); err != nil {
		t.Fatalf("page %d: %v", n, err)
	}
	if got != want {
		t.Errorf("page %d begins % x and ends % x, want % x and % x", n, got[:10], got[4090:], want[:10], want[4090:])
	}
}
