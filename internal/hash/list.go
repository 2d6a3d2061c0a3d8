package hash

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// A list is text, so that other programs can read it: what follows is one line each.
//
//	vhdxfs block digests 1
//	size 1073741824              of the disk, bytes
//	block 1048576                BlockSize
//	0 2a3b...                    offset and SHA-256 of a block, in order; a block that is missing here is zero
//	...
//	sha256 9f86...               of the whole disk; may be missing
//	end 512                      how many blocks are listed
const listTitle = "vhdxfs block digests 1"

// A ListWriter writes a list. Its errors are those of the writer below it, and come at the latest with End.
type ListWriter struct {
	w *bufio.Writer
	n int64 // blocks
}

// NewListWriter begins a list of the blocks of a disk of size bytes.
func NewListWriter(w io.Writer, size int64) *ListWriter {
	l := &ListWriter{w: bufio.NewWriter(w)}
	fmt.Fprintf(l.w, "%s\nsize %d\nblock %d\n", listTitle, size, BlockSize)
	return l
}

// Block adds a block.
func (l *ListWriter) Block(off int64, d Digest) error {
	l.n++
	_, err := fmt.Fprintf(l.w, "%d %s\n", off, d)
	return err
}

// End ends the list with the digest of the whole disk, if that is known.
func (l *ListWriter) End(whole *Digest) error {
	if whole != nil {
		fmt.Fprintf(l.w, "sha256 %s\n", whole)
	}
	fmt.Fprintf(l.w, "end %d\n", l.n)
	return l.w.Flush()
}

// A ListReader reads a list.
type ListReader struct {
	Size  int64   // of the disk, bytes
	Whole *Digest // known when Next has returned io.EOF, if the list has it

	in         *bufio.Scanner
	line, n    int64 // read so far: lines and blocks
	last       int64 // offset of the last block
	ended, one bool  // one: the list has the digest of the whole disk alone
}

// maxLine is longer than any line of a list, or of the output of sha256sum: a path has at most 4096 bytes.
const maxLine = 8 << 10

// ErrList is matched by the error for what is no list, or none that is complete.
var ErrList = errors.New("not a list of digests, or not complete")

func (l *ListReader) bad(format string, args ...any) error {
	return fmt.Errorf("%w: line %d: %s", ErrList, l.line, fmt.Sprintf(format, args...))
}

// ReadList begins to read a list. A line of sha256sum, which hash prints without a list, is a list of no blocks: Blocks
// returns false.
func ReadList(r io.Reader) (*ListReader, error) {
	l := &ListReader{in: bufio.NewScanner(r), last: -BlockSize}
	l.in.Buffer(make([]byte, 0, maxLine), maxLine)
	title, err := l.next()
	if err != nil {
		return nil, err
	}
	if title != listTitle {
		text, _, named := strings.Cut(title, " ")
		d, err := parseDigest(text)
		if err != nil || !named {
			return nil, l.bad("it does not begin with %q", listTitle)
		}
		l.Whole, l.one, l.ended, l.Size = &d, true, true, -1
		return l, nil
	}
	if l.Size, err = l.number("size"); err != nil {
		return nil, err
	}
	n, err := l.number("block")
	if err == nil && n != BlockSize {
		err = l.bad("the blocks must have %d bytes", BlockSize)
	}
	return l, err
}

// Blocks reports whether the list has the digests of blocks.
func (l *ListReader) Blocks() bool { return !l.one }

func (l *ListReader) next() (string, error) {
	l.line++
	if l.in.Scan() {
		return l.in.Text(), nil
	}
	if err := l.in.Err(); err != nil && !errors.Is(err, bufio.ErrTooLong) {
		return "", err
	}
	return "", l.bad("the list ends there")
}

// number reads a line of a word and a number.
func (l *ListReader) number(word string) (int64, error) {
	text, err := l.next()
	if err != nil {
		return 0, err
	}
	value, ok := strings.CutPrefix(text, word+" ")
	n, err := strconv.ParseInt(value, 10, 64)
	if !ok || err != nil || n < 0 {
		return 0, l.bad("%q followed by a number is expected", word)
	}
	return n, nil
}

// Next returns the next block, and io.EOF behind the last one of a complete list.
func (l *ListReader) Next() (off int64, d Digest, err error) {
	if l.ended {
		return 0, d, io.EOF
	}
	text, err := l.next()
	if err != nil {
		return 0, d, err
	}
	word, value, _ := strings.Cut(text, " ")
	switch {
	case word == "sha256" && l.Whole == nil:
		if d, err = parseDigest(value); err != nil {
			return 0, d, l.bad("%v", err)
		}
		l.Whole = &d
		return l.Next()
	case word == "end":
		if n, err := strconv.ParseInt(value, 10, 64); err != nil || n != l.n {
			return 0, d, l.bad("%d blocks are listed, but it says %q", l.n, value)
		}
		l.ended = true
		return 0, d, io.EOF
	case l.Whole != nil:
		return 0, d, l.bad(`"end" is expected`)
	}
	off, err = strconv.ParseInt(word, 10, 64)
	if err != nil || off < 0 || off%BlockSize != 0 || off >= l.Size || off <= l.last {
		return 0, d, l.bad("invalid offset %q", word)
	}
	if d, err = parseDigest(value); err != nil {
		return 0, d, l.bad("%v", err)
	}
	l.n++
	l.last = off
	return off, d, nil
}

func parseDigest(s string) (d Digest, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) {
		return d, errors.New("invalid SHA-256")
	}
	return Digest(b), nil
}
