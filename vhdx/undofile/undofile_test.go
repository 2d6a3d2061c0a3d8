package undofile

import (
	"bytes"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// write returns an undo file with two records.
func write(t *testing.T) (Header, [][]byte, []byte) {
	t.Helper()
	h := Header{OldSize: 10000, NewSize: 8000, FileWriteGUID: uuid.UUID{1, 2, 3}, Made: time.Unix(5, 7), Path: "/a/b.vhdx"}
	olds := [][]byte{bytes.Repeat([]byte{1}, 700), bytes.Repeat([]byte{2}, 512)}
	var b bytes.Buffer
	w, err := NewWriter(&b, h)
	news := SectorSums(bytes.Repeat([]byte{9}, 700))
	if err := errors.Join(err, w.Record(100, olds[0], news, news), w.Record(9488, olds[1]), w.End()); err != nil || w.Size() != int64(b.Len()) {
		t.Fatalf("write: %v; %d of %d bytes", err, w.Size(), b.Len())
	}
	return h, olds, b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	h, olds, b := write(t)
	r, err := NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil || r.Header != h {
		t.Fatalf("NewReader = %+v, %v; want %+v", r.Header, err, h)
	}
	for range 2 { // it can be read again
		var offs []int64
		err = r.Each(func(rec *Record) error {
			old := olds[len(offs)]
			offs = append(offs, rec.Off)
			if !bytes.Equal(rec.Old, old) || len(rec.News) != 4-2*len(offs) {
				t.Errorf("record at %d has %d bytes and %d states", rec.Off, len(rec.Old), len(rec.News))
			}
			if !rec.Knows(0, old[:SectorSize]) || rec.Knows(0, make([]byte, SectorSize)) {
				t.Errorf("record at %d knows what it does not, or does not know what was there", rec.Off)
			}
			if rec.Knows(0, bytes.Repeat([]byte{9}, SectorSize)) != (len(rec.News) > 0) {
				t.Errorf("record at %d: whether it knows what the repair made is wrong", rec.Off)
			}
			return nil
		})
		if err != nil || len(offs) != 2 || offs[0] != 100 || offs[1] != 9488 {
			t.Fatalf("Each calls for %v, %v", offs, err)
		}
	}
}

// Whichever byte of the file is wrong or missing, reading it to its end tells.
func TestDamaged(t *testing.T) {
	_, _, b := write(t)
	read := func(b []byte) error {
		r, err := NewReader(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			err = r.Each(func(*Record) error { return nil })
		}
		return err
	}
	if err := read(b[:len(b)-RecordSize]); !errors.Is(err, ErrDamaged) {
		t.Errorf("without its end: %v; want %v", err, ErrDamaged)
	}
	for n := 0; n < len(b); n += 5 {
		bad := bytes.Clone(b)
		bad[n] ^= 0x40
		if err := read(bad); err == nil || !errors.Is(err, ErrDamaged) && n/4 != 2 { // a version is told of otherwise
			t.Errorf("byte %d flipped: %v; want %v", n, err, ErrDamaged)
		}
		if err := read(b[:n]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut at byte %d: %v; want %v", n, err, ErrDamaged)
		}
	}
}

// readAll reads an undo file of any content and returns the offsets of its records.
func readAll(r io.ReaderAt, size int64) (offs []int64, err error) {
	u, err := NewReader(r, size)
	if err != nil {
		return nil, err
	}
	err = u.Each(func(rec *Record) error {
		offs = append(offs, rec.Off)
		return nil
	})
	return offs, err
}

// A good checksum makes no field believable: who wrote the file chose both.
func TestRefusesFieldsWithGoodChecksums(t *testing.T) {
	header := func(change func(b []byte)) func(b []byte) {
		return func(b []byte) {
			change(b)
			h := b[:HeaderSize+len("/a/b.vhdx")]
			ondisk.LE.PutUint32(h[HeaderSum:], ondisk.Checksum(h, HeaderSum))
		}
	}
	size := func(at int, n int64) func(b []byte) {
		return header(func(b []byte) { ondisk.LE.PutUint64(b[at:], uint64(n)) })
	}
	end := func(change func(rec []byte)) func(b []byte) {
		return func(b []byte) {
			rec := b[len(b)-RecordSize:]
			change(rec)
			ondisk.LE.PutUint32(rec[RecordSum:], ondisk.Checksum(rec, RecordSum))
		}
	}
	for _, c := range []struct {
		name   string
		change func(b []byte)
		good   bool
	}{
		{"nothing changed", func([]byte) {}, true},
		{"signature", header(func(b []byte) { b[7]++ }), false},
		{"version", header(func(b []byte) { b[8]++ }), false},
		{"negative old size", size(16, -1), false},
		{"negative new size", size(24, -1), false},
		{"old size too large", size(16, ondisk.MaxFileSize+1), false},
		{"new size too large", size(24, ondisk.MaxFileSize+1), false},
		{"largest old size", size(16, ondisk.MaxFileSize), true},
		{"largest new size", size(24, ondisk.MaxFileSize), true},
		{"empty new file", size(24, 0), true},
		{"records of an empty old file", size(16, 0), false},
		{"a record ends beyond the old file", size(16, 9999), false},
		{"another number of records", end(func(rec []byte) { rec[0]++ }), false},
	} {
		_, _, b := write(t)
		c.change(b)
		_, err := readAll(bytes.NewReader(b), int64(len(b)))
		if c.good && err != nil || !c.good && c.name != "version" && !errors.Is(err, ErrDamaged) || !c.good && err == nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, field := range []int{16, 24} { // without any record
		var b bytes.Buffer
		if _, err := NewWriter(&b, Header{Path: "/a/b.vhdx"}); err != nil {
			t.Fatal(err)
		}
		size(field, -1)(b.Bytes())
		if _, err := NewReader(bytes.NewReader(b.Bytes()), int64(b.Len())); !errors.Is(err, ErrDamaged) {
			t.Errorf("a negative size in the header: %v; want %v", err, ErrDamaged)
		}
	}
	for _, rec := range []Record{
		{Off: -1, Old: []byte{1}},
		{Off: math.MinInt64, Old: []byte{1}},
		{Off: 0, Old: make([]byte, MaxRecord+1)},
		{Off: 0, Old: []byte{1}, News: make([][]byte, MaxStates+1)},
	} {
		var b bytes.Buffer
		w, err := NewWriter(&b, Header{OldSize: 2 * MaxRecord})
		for i := range rec.News {
			rec.News[i] = SectorSums(rec.Old)
		}
		if err := errors.Join(err, w.Record(rec.Off, rec.Old, rec.News...), w.End()); err != nil {
			t.Fatal(err)
		}
		if _, err := readAll(bytes.NewReader(b.Bytes()), int64(b.Len())); !errors.Is(err, ErrDamaged) {
			t.Errorf("a record of %d bytes at %d with %d states: %v; want %v", len(rec.Old), rec.Off, len(rec.News), err, ErrDamaged)
		}
	}
	var b bytes.Buffer
	if _, err := NewWriter(&b, Header{Path: strings.Repeat("x", MaxPath+1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := NewReader(bytes.NewReader(b.Bytes()), int64(b.Len())); !errors.Is(err, ErrDamaged) {
		t.Errorf("a path that is too long: %v; want %v", err, ErrDamaged)
	}
}

// The longest path, the largest record with the most states, and one whose offset is its number come back.
func TestLimitsRoundTrip(t *testing.T) {
	h := Header{OldSize: 2 * MaxRecord, NewSize: 1, Made: time.Unix(0, 0), Path: strings.Repeat("p", MaxPath)}
	old := bytes.Repeat([]byte{1}, MaxRecord)
	sums := SectorSums(bytes.Repeat([]byte{2}, MaxRecord))
	var b bytes.Buffer
	w, err := NewWriter(&b, h)
	if err := errors.Join(err, w.Record(0, old, sums, sums), w.Record(1, old[:512], sums[:SumSize]), w.Record(MaxRecord, old), w.End()); err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil || r.Header != h {
		t.Fatalf("the header has not come back: %v", err)
	}
	states := []int{2, 1, 0}
	n := 0
	err = r.Each(func(rec *Record) error {
		if len(rec.News) != states[n] || !bytes.Equal(rec.Old, old[:len(rec.Old)]) {
			t.Errorf("record %d has %d states, want %d, or other bytes", n, len(rec.News), states[n])
		}
		for _, news := range rec.News {
			if !bytes.Equal(news, sums[:len(news)]) || len(news) != (len(rec.Old)+511)/512*SumSize {
				t.Errorf("record %d has other checksums, or %d bytes of them", n, len(news))
			}
		}
		n++
		return nil
	})
	if err != nil || n != len(states) {
		t.Errorf("%d records, %v; want %d", n, err, len(states))
	}
}

// A failingReader fails behind its first bytes.
type failingReader struct {
	io.ReaderAt
	good int64
}

var errRead = errors.New("bad sector")

func (r failingReader) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > r.good {
		return 0, errRead
	}
	return r.ReaderAt.ReadAt(p, off)
}

// That a file cannot be read, or not to the size that it had, is an error, but does not say that it is damaged. A size that
// somebody made up takes no memory.
func TestReadErrors(t *testing.T) {
	var b bytes.Buffer
	w, err := NewWriter(&b, Header{OldSize: 4 * MaxRecord})
	for i := range int64(3) { // more than is read at once
		err = errors.Join(err, w.Record(i*MaxRecord, bytes.Repeat([]byte{byte(i + 1)}, MaxRecord)))
	}
	if err := errors.Join(err, w.End()); err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(b.Bytes())
	for good := int64(0); good < r.Size()-1; good += 100_000 {
		if _, err := readAll(failingReader{r, good}, r.Size()); !errors.Is(err, errRead) || errors.Is(err, ErrDamaged) {
			t.Errorf("read error behind byte %d: %v; want %v", good, err, errRead)
		}
	}
	_, _, short := write(t)
	if _, err := NewReader(bytes.NewReader(short), 1<<50); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is shorter than its size: %v; want %v", err, io.ErrUnexpectedEOF)
	}
}

func TestErrorOfTheCaller(t *testing.T) {
	_, _, b := write(t)
	r, err := NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	mine := errors.New("mine")
	if err := r.Each(func(*Record) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("Each: %v; want %v", err, mine)
	}
}
