package journal

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// The bytes are laid by hand from the tables of MS-VHDX 2.3.1: a round trip cannot see an offset that is
// wrong both ways.
func TestEntryBytes(t *testing.T) {
	var pg [SectorSize]byte
	for i := range pg {
		pg[i] = byte(i % 251)
	}
	got := AppendEntry([]byte("before"), &Entry{
		LogGUID:           thisSession,
		SequenceNumber:    0x0102030405060708,
		Tail:              0x00003000,
		FlushedFileOffset: 0x1112131415161718,
		LastFileOffset:    0x2122232425262728,
		Updates: []Update{
			{FileOffset: 0x3132333435363000, ZeroLength: 0x4142434445464000},
			{FileOffset: 0x5152535455565000, Data: &pg},
		},
	})
	if string(got[:6]) != "before" {
		t.Fatalf("AppendEntry changed what it appends to: % x", got[:6])
	}
	got = got[6:]

	seq := []byte{8, 7, 6, 5, 4, 3, 2, 1}
	want := make([]byte, 2*SectorSize)
	at := func(off int, b ...byte) { copy(want[off:], b) }
	at(0, 'l', 'o', 'g', 'e')
	at(8, 0x00, 0x20, 0, 0)
	at(12, 0x00, 0x30, 0, 0)
	at(16, seq...)
	at(24, 2, 0, 0, 0)
	at(32, 0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77, 0x99, 0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0xFF, 0)
	at(48, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11)
	at(56, 0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21)
	at(64, 'z', 'e', 'r', 'o')
	at(72, 0x00, 0x40, 0x46, 0x45, 0x44, 0x43, 0x42, 0x41)
	at(80, 0x00, 0x30, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31)
	at(88, seq...)
	at(96, 'd', 'e', 's', 'c')
	at(100, pg[4092:]...)
	at(104, pg[:8]...)
	at(112, 0x00, 0x50, 0x56, 0x55, 0x54, 0x53, 0x52, 0x51)
	at(120, seq...)
	at(4096, 'd', 'a', 't', 'a', 4, 3, 2, 1)
	at(4104, pg[8:4092]...)
	at(8188, 8, 7, 6, 5)
	le.PutUint32(want[4:], ondisk.Update(0, want)) // while its field is zero
	if !bytes.Equal(got, want) {
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("byte %d is %#02x, want %#02x", i, got[i], want[i])
			}
		}
		t.Fatalf("%d bytes, want %d", len(got), len(want))
	}
}

// The bytes of an entry do not depend on what its buffer held before: a writer uses the same one again, and what is left
// of another entry would go to disk between the descriptors and the data.
func TestEntryInAUsedBuffer(t *testing.T) {
	e := Entry{LogGUID: thisSession, SequenceNumber: 7, Updates: []Update{data(1, 1), zero(2, 3), data(6, 2)}}
	want := AppendEntry(nil, &e)
	if got := AppendEntry(bytes.Repeat([]byte{0xFF}, len(want))[:0], &e); !bytes.Equal(got, want) {
		t.Error("an entry in a used buffer has other bytes than one in a new buffer")
	}
}

func TestDescriptorSectors(t *testing.T) {
	for _, c := range []struct{ n, want int64 }{
		{0, 1}, {1, 1}, {126, 1}, {127, 2}, {254, 2}, {255, 3}, {1<<32 - 1, 1<<25 + 1},
	} {
		if got := descriptorSectors(c.n); got != c.want {
			t.Errorf("descriptorSectors(%d) = %d, want %d", c.n, got, c.want)
		}
	}
}

// Each case makes one change to a good entry, which has 130 descriptors in two sectors and 129 data sectors.
// The checksum is stamped anew but where it is the subject, so that nothing else can be what is found.
func TestInvalidEntries(t *testing.T) {
	const sectors = 256
	put32 := func(off int, v uint32) func(b []byte) { return func(b []byte) { le.PutUint32(b[off:], v) } }
	for _, c := range []struct {
		name   string
		change func(b []byte)
		stamp  bool
		want   string
	}{
		{"signature", func(b []byte) { b[3] = 'E' }, true, `signature "logE"`},
		{"other session", func(b []byte) { ondisk.PutGUID(b[32:], otherSession) }, true, "LogGuid"},
		{"EntryLength 0", put32(8, 0), true, "EntryLength 0 in a log"},
		{"EntryLength not of whole sectors", put32(8, 131*SectorSize+512), true, "EntryLength 537088 in a log"},
		{"EntryLength above LogLength", put32(8, sectors*SectorSize+SectorSize), false, "EntryLength 1052672 in a log"},
		{"EntryLength huge", put32(8, 0xFFFFF000), false, "in a log of"},
		{"EntryLength a sector short", put32(8, 130*SectorSize), true, "the descriptors need"},
		{"EntryLength a sector long", put32(8, 132*SectorSize), true, "the descriptors need"},
		{"Tail not of whole sectors", put32(12, 512), true, "Tail 512 in a log"},
		{"Tail at LogLength", put32(12, sectors*SectorSize), true, "Tail 1048576 in a log"},
		{"SequenceNumber 0", func(b []byte) { clear(b[16:24]) }, true, "SequenceNumber 0"},
		{"DescriptorCount too large", put32(24, 131*128+1), true, "do not fit"},
		{"DescriptorCount huge", put32(24, 1<<32-1), true, "do not fit"},
		{"DescriptorCount two less", put32(24, 128), true, "the descriptors need"},
		{"DescriptorCount 0", put32(24, 0), true, "the descriptors need 4096"},
		{"first descriptor's signature", func(b []byte) { b[64] = 'D' }, true, `signature "Desc"`},
		{"last descriptor's signature", func(b []byte) { copy(b[SectorSize+3*32:], "data") }, true, `signature "data"`},
		{"descriptor's SequenceNumber", func(b []byte) { b[64+24]++ }, true, "SequenceNumber 101 in entry 100"},
		{"descriptor's FileOffset", func(b []byte) { le.PutUint64(b[64+16:], 0x200200) }, true, "FileOffset 0x200200"},
		{"descriptor's ZeroLength", func(b []byte) { le.PutUint64(b[SectorSize+3*32+8:], 512) }, true, "ZeroLength 0x200"},
		{"data sector's signature", func(b []byte) { b[2*SectorSize] = 'D' }, true, `signature "Data"`},
		{"last data sector's signature", func(b []byte) { b[130*SectorSize] = 0 }, true, "data sector with signature"},
		{"data sector's SequenceHigh", func(b []byte) { b[2*SectorSize+4] = 1 }, true, "data sector with SequenceNumber"},
		{"data sector's SequenceLow", func(b []byte) { b[2*SectorSize+4092]-- }, true, "data sector with SequenceNumber 99"},
		{"checksum", func(b []byte) { b[5] ^= 0x80 }, false, "checksum"},
		{"flipped bit in the data", func(b []byte) { b[100*SectorSize+77] ^= 1 }, false, "checksum"},
		{"flipped bit in the padding", func(b []byte) { b[2*SectorSize-1] ^= 1 }, false, "checksum"},
		{"flipped reserved bit", func(b []byte) { b[28] ^= 1 }, false, "checksum"},
	} {
		t.Run(c.name, func(t *testing.T) {
			im := newImage(sectors)
			u := make([]Update, 130)
			for i := range u {
				u[i] = data(i, byte(i))
			}
			u[129] = zero(129, 1)
			im.entry(self, u...)
			if s := im.find(t); s.Updates != 130 {
				t.Fatalf("the undamaged entry has %d updates, want 130", s.Updates)
			}
			im.damage(c.change, c.stamp)
			_, err := readEntry(newRingReader(im, im.reg), 0)
			wantRule(t, err, ondisk.RuleLogSequence)
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q, want %q in it", err, c.want)
			}
			_, err = Find(im, im.reg)
			wantRule(t, err, ondisk.RuleLogSequence)
		})
	}
}

// O8: a reserved field that is not zero does not make an entry with a good checksum invalid, since the
// entries before it would then be taken for all there is.
func TestO8ReservedFields(t *testing.T) {
	im := newImage(16)
	im.entry(self, zero(0, 1), data(1, 0xAA))
	im.damage(func(b []byte) { b[28], b[64+4] = 1, 1 }, true)
	after := im.replay(t)
	wantPage(t, after, 0, 0)
	wantPage(t, after, 1, 0xAA)
}
