package partition

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	sizes "github.com/vhdxfs/vhdxfs/internal/size"
)

// A Partition is a run of bytes of a disk. Numbers are those that the kernel gives: logical partitions of an MBR begin
// at 5.
type Partition struct {
	Number   int
	Off, Len int64 // bytes
}

// Get returns partition n of a disk of size bytes with logical sectors of the given size. All of it lies inside the disk.
func Get(disk io.ReaderAt, size, sector int64, n int) (Partition, error) {
	list, err := list(disk, size, sector)
	if err != nil {
		return Partition{}, err
	}
	var numbers []string
	for _, p := range list {
		if p.Number != n {
			numbers = append(numbers, strconv.Itoa(p.Number))
			continue
		}
		if p.Len <= 0 || p.Off >= size || p.Len > size-p.Off {
			return p, fmt.Errorf("partition %d (%s at %#x) ends beyond the end of the disk (%#x)", n, sizes.Text(p.Len), p.Off, size)
		}
		return p, nil
	}
	if len(list) == 0 {
		return Partition{}, fmt.Errorf("the disk has no partition %d: its partition table is empty", n)
	}
	return Partition{}, fmt.Errorf("the disk has no partition %d; it has %s", n, strings.Join(numbers, ", "))
}

// list returns the partitions of a disk, which may lie anywhere.
func list(disk io.ReaderAt, size, sector int64) ([]Partition, error) {
	const headSize = 512
	head := make([]byte, headSize)
	if size < headSize {
		return nil, fmt.Errorf("a disk of %s has no partition table", sizes.Text(size))
	}
	if err := readAt(disk, head, 0); err != nil {
		return nil, err
	}
	for _, find := range bootSectors {
		if what, _ := find(head, size); what != "" {
			return nil, fmt.Errorf("the disk has no partition table: all of it is %s", what)
		}
	}
	entries, sound := mbrEntries(head)
	if !sound {
		return nil, fmt.Errorf("the disk has no partition table (GPT or MBR)")
	}
	if !slices.ContainsFunc(entries, func(e mbrEntry) bool { return e.kind == protective }) {
		return mbrList(disk, size, sector, entries)
	}
	g, err := readGPT(disk, size, sector)
	switch {
	case err != nil:
		return nil, err
	case g == nil:
		return nil, fmt.Errorf("the disk has a protective MBR, but no GPT for sectors of %d bytes", sector)
	}
	return g.list(), nil
}

// list returns the partitions of a GPT.
func (g *GPT) list() (list []Partition) {
	each := int(le.Uint32(g.header[84:]))
	for i := 0; i+each <= len(g.entries); i += each {
		e := g.entries[i:]
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		p := Partition{Number: i/each + 1}
		if first, last := le.Uint64(e[32:]), le.Uint64(e[40:]); first <= last && last < math.MaxInt64 {
			p.Off, p.Len = span(first, uint64(g.sector)), span(last-first+1, uint64(g.sector))
		}
		list = append(list, p)
	}
	return list
}

// maxLogical is how many logical partitions are looked at, each of which has a table of its own that may lead anywhere.
const maxLogical = 252

// mbrList returns the partitions of an MBR, with the logical ones in place of the extended one that holds them.
func mbrList(disk io.ReaderAt, size, sector int64, entries []mbrEntry) (list []Partition, err error) {
	var extended *mbrEntry
	for i, e := range entries {
		switch {
		case e.empty():
		case e.extended():
			if extended == nil {
				extended = &e
			}
		default:
			list = append(list, e.partition(i+1, 0, sector))
		}
	}
	if extended == nil {
		return list, nil
	}
	// Each table has one partition, counted from the table, and the way to the next table, counted from the first one.
	at, n := extended.first, 5
	for range maxLogical {
		off := span(at, uint64(sector))
		b := make([]byte, 512)
		if off > size-int64(len(b)) {
			return nil, fmt.Errorf("the table of logical partition %d is at %#x, beyond the end of the disk", n, off)
		}
		if err := readAt(disk, b, off); err != nil {
			return nil, err
		}
		entries, sound := mbrEntries(b)
		if !sound {
			return nil, fmt.Errorf("the table of logical partition %d, at %#x, is damaged", n, off)
		}
		if e := entries[0]; !e.empty() && !e.extended() {
			list = append(list, e.partition(n, at, sector))
			n++
		}
		next := entries[1]
		if next.empty() || !next.extended() {
			break
		}
		at = extended.first + next.first
	}
	return list, nil
}
