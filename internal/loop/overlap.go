package loop

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A span is bytes of something that lies on nothing else: a disk, or a file that a loop device shows.
type span struct {
	what     string
	from, to int64
	part     bool // an unknown part of these bytes: those of a volume that shares a disk with others
}

// Overlap reports whether two files or block devices share bytes: they are the same, one is a partition or a volume on the
// other, or a loop device shows one of them. File systems are not looked into. What cannot be found out counts as apart.
func Overlap(a, b unix.Stat_t) bool {
	for _, x := range spans(a, maxBelow) {
		for _, y := range spans(b, maxBelow) {
			if x.what == y.what && x.from < y.to && y.from < x.to && !(x.part && y.part) {
				return true
			}
		}
	}
	return false
}

// spans returns where the bytes of a file or block device lie.
func spans(st unix.Stat_t, depth int) []span {
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return all(fmt.Sprintf("file %d:%d", st.Dev, st.Ino))
	}
	name := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + name)
	if err != nil {
		return all("device " + name)
	}
	return spansOf(dir, depth)
}

// spansOf does so for a device with the given directory in sysfs.
func spansOf(dir string, depth int) []span {
	if depth > 0 && number(dir, "partition") != 0 {
		start := number(dir, "start") * sysUnit
		return within(spansOf(filepath.Dir(dir), depth-1), start, number(dir, "size")*sysUnit)
	}
	if file, err := os.ReadFile(filepath.Join(dir, "loop", "backing_file")); err == nil && depth > 0 {
		var st unix.Stat_t
		if unix.Stat(strings.TrimSuffix(string(file), "\n"), &st) == nil {
			return within(spans(st, depth-1), number(dir, "loop", "offset"), number(dir, "size")*sysUnit)
		}
	}
	list := all("device " + filepath.Base(dir))
	slaves, _ := filepath.Glob(filepath.Join(dir, "slaves", "*")) // the pattern is a good one
	for _, s := range slaves {
		if s, err := filepath.EvalSymlinks(s); err == nil && depth > 0 {
			for _, x := range spansOf(s, depth-1) {
				x.part = true
				list = append(list, x)
			}
		}
	}
	return list
}

// all returns the bytes of what lies on nothing else.
func all(what string) []span { return []span{{what: what, to: math.MaxInt64}} }

// within returns size bytes at start of a device or file whose bytes lie in the spans. Which bytes of what lies
// below a volume are its own is unknown.
func within(list []span, start, size int64) []span {
	for i, s := range list {
		if s.part {
			continue
		}
		from := s.from + min(start, s.to-s.from)
		list[i].from, list[i].to = from, from+min(size, s.to-from)
	}
	return list
}
