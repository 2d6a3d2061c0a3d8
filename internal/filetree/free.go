package filetree

import (
	"io"
	"math/bits"
)

// Free returns how many bytes a file system says are free that has no number for that: NTFS, FAT12 and FAT16. It reads their
// map of clusters. Of others it returns 0.
func Free(disk io.ReaderAt, size int64, kind string) (free int64, err error) {
	if kind != "NTFS" && kind != "FAT" {
		return 0, nil
	}
	t, err := Open(disk, size, kind)
	if err != nil {
		return 0, err
	}
	defer catch(&err)
	switch t := t.(type) {
	case *ntfsFS:
		return t.free()
	case *fatFS:
		return t.free()
	}
	return 0, nil
}

// A bitCount is a sink that counts the bits that are set.
type bitCount struct{ n int64 }

func (c *bitCount) Write(b []byte) (int, error) {
	for _, x := range b {
		c.n += int64(bits.OnesCount8(x))
	}
	return len(b), nil
}

func (c *bitCount) Zeros(int64) error { return nil }

func (n *ntfsFS) free() (int64, error) {
	const bitmapFile = 6
	boot, err := n.v.at(0, 512)
	if err != nil {
		return 0, err
	}
	attrs, err := n.attributes(bitmapFile)
	if err != nil {
		return 0, err
	}
	a := find(attrs, ntfsData, "")
	clusters := min(le.Uint64(boot[40:]), uint64(n.v.size/n.sector)) / uint64(n.cluster/n.sector)
	if a == nil || uint64(a.length()) < clusters/8 {
		return 0, damaged("the bitmap of the clusters is too small")
	}
	var used bitCount
	if err := n.copy(a, n.v.writer(&used, int64(clusters+7)/8)); err != nil { // #nosec G115 -- less than the disk
		return 0, err
	}
	return max(int64(clusters)-used.n, 0) * n.cluster, nil // #nosec G115 -- less than the disk
}

func (f *fatFS) free() (int64, error) {
	if f.entry == 32 { // which has a number
		return 0, nil
	}
	free := int64(0)
	for n := range f.count {
		v, more, err := f.next(n + firstCluster)
		switch {
		case more && v == 0: // which next takes for a bad number
			free++
		case err != nil:
			return 0, err
		}
	}
	return free * f.cluster, nil
}
