package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const mib = 1 << 20 // bytes

// sha256Of returns the SHA-256 of all that r gives.
func sha256Of(r io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.CopyBuffer(h, struct{ io.Reader }{r}, make([]byte, mib))
	return hex.EncodeToString(h.Sum(nil)), err
}

// sha256File returns the SHA-256 of a file.
func sha256File(t *testing.T, path string) string {
	t.Helper()
	f := open(t, path)
	defer f.Close()
	sum, err := sha256Of(f)
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// sparseDigest returns the SHA-256 over each aligned MiB of the file that holds anything but zeros: its number
// as eight bytes, little-endian, then its bytes. It reads nothing but what the file says is data. The second
// result is how many bytes that was.
func sparseDigest(t *testing.T, path string) (string, int64) {
	t.Helper()
	f := open(t, path)
	defer f.Close()
	h, b := sha256.New(), make([]byte, mib)
	var next, data int64 // next is the first MiB not yet looked at
	for _, s := range segments(t, f) {
		data += s.end - s.begin
		for i := max(next, s.begin/mib); i*mib < s.end; i++ {
			n, err := f.ReadAt(b, i*mib)
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			if !zero(b[:n]) {
				h.Write(binary.LittleEndian.AppendUint64(nil, uint64(i)))
				h.Write(b[:n])
			}
			next = i + 1
		}
	}
	return hex.EncodeToString(h.Sum(nil)), data
}

// A segment is a run of bytes of a file that the file says is data.
type segment struct{ begin, end int64 }

// segments lists the data of a file by SEEK_DATA and SEEK_HOLE.
func segments(t *testing.T, f *os.File) []segment {
	t.Helper()
	var list []segment
	for off := int64(0); ; {
		begin, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			return list
		}
		if err != nil {
			t.Fatalf("SEEK_DATA from %d: %v", off, err)
		}
		end, err := unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			t.Fatalf("SEEK_HOLE from %d: %v", begin, err)
		}
		if begin < off || end <= begin {
			t.Fatalf("from %d: data at %d, a hole at %d", off, begin, end)
		}
		list = append(list, segment{begin, end})
		off = end
	}
}

// sameContent fails the test unless both files hold the same bytes. It reads every byte of both, holes too.
func sameContent(t *testing.T, gotPath, wantPath string) {
	t.Helper()
	got, want := open(t, gotPath), open(t, wantPath)
	defer got.Close()
	defer want.Close()
	if g, w := sizeOf(t, got), sizeOf(t, want); g != w {
		t.Fatalf("%s has %d bytes, want %d", gotPath, g, w)
	}
	g, w := make([]byte, mib), make([]byte, mib)
	for off := int64(0); ; off += mib {
		n, err := io.ReadFull(want, w)
		if err == io.EOF {
			return
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(got, g[:n]); err != nil {
			t.Fatalf("read %d bytes at %d: %v", n, off, err)
		}
		if d := difference(g[:n], w[:n]); d >= 0 {
			t.Fatalf("%s: byte %d is %#02x, want %#02x", gotPath, off+int64(d), g[d], w[d])
		}
	}
}

// difference returns the first index at which a and b, of one length, differ, and -1 if they do not.
func difference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

var zeros [mib]byte

// zero says whether b, of at most a MiB, holds nothing but zeros.
func zero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func sizeOf(t *testing.T, f *os.File) int64 {
	t.Helper()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

// unpack writes what an xz file holds to path, with holes for its zeros.
func unpack(t *testing.T, from, path string) {
	t.Helper()
	requireTools(t, "xz")
	cmd := exec.Command("xz", "--decompress", "--stdout", from)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	werr := writeSparse(path, out)
	out.Close() // ends xz should writing have failed
	if err := errors.Join(werr, cmd.Wait()); err != nil {
		t.Fatalf("unpack %s: %v", from, err)
	}
}

// writeSparse writes what r gives to a new file, with holes for its zeros.
func writeSparse(path string, r io.Reader) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	b, off := make([]byte, 64<<10), int64(0)
	for {
		n, rerr := io.ReadFull(r, b)
		if !zero(b[:n]) {
			if _, err := f.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		if rerr == io.EOF || rerr == io.ErrUnexpectedEOF {
			return f.Truncate(off)
		}
		if rerr != nil {
			return fmt.Errorf("at %d: %w", off, rerr)
		}
	}
}
