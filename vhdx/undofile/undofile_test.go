package undofile

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
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
