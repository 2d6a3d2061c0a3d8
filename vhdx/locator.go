package vhdx

import (
	"errors"
	"strings"

	"github.com/google/uuid"

	"vhdxfs/internal/ondisk"
)

const (
	locatorHeaderSize = 20
	locatorEntrySize  = 12
)

// locatorTypeVHDX is the only type of parent locator there is (MS-VHDX 2.6.2.6.1).
var locatorTypeVHDX = uuid.MustParse("B04AEFB7-D19E-4A81-B789-25B8E9445913")

// The keys of a parent locator (MS-VHDX 2.6.2.6.3). They are case sensitive.
const (
	keyLinkage      = "parent_linkage"
	keyLinkage2     = "parent_linkage2"
	keyRelativePath = "relative_path"
	keyVolumePath   = "volume_path"
	keyAbsolutePath = "absolute_win32_path"
)

// pathKeys are the keys that say where the parent is, in the order in which they are tried.
var pathKeys = []string{keyRelativePath, keyVolumePath, keyAbsolutePath}

// A parentLocator says how to find the parent and how to know it (MS-VHDX 2.6.2.6).
type parentLocator struct {
	linkage  uuid.UUID
	linkage2 uuid.UUID         // a second value to accept; zero if there is none
	values   map[string]string // by key, unknown keys included
}

// accepts reports whether a parent with the given DataWriteGuid is the right one.
func (p *parentLocator) accepts(dataWrite uuid.UUID) bool {
	return dataWrite == p.linkage || p.linkage2 != uuid.Nil && dataWrite == p.linkage2
}

// decodeParentLocator decodes and checks the parent locator in b, the metadata item at file offset off.
// The caller has seen that b holds a locator header.
func decodeParentLocator(b []byte, off int64) (*parentLocator, error) {
	bad := func(r ondisk.Rule, format string, args ...any) error {
		return ondisk.Corrupt(r, "parent locator", off, format, args...)
	}
	if t := ondisk.GUID(b); t != locatorTypeVHDX {
		return nil, bad(ondisk.R54, "type %v", t)
	}
	n := int(le.Uint16(b[18:]))
	if n == 0 || locatorHeaderSize+n*locatorEntrySize > len(b) {
		return nil, bad(ondisk.R55, "%d entries in an item of %d bytes", n, len(b))
	}
	p := &parentLocator{values: make(map[string]string)}
	room := maxItemSize // bytes; all strings of an item take less unless thousands of them share a place
	for i := range n {
		e := b[locatorHeaderSize+i*locatorEntrySize:]
		room -= int(le.Uint16(e[8:])) + int(le.Uint16(e[10:]))
		if room < 0 {
			return nil, bad(ondisk.R55, "keys and values of more than %d bytes in an item of %d", maxItemSize, len(b))
		}
		key, err := locatorString(b, le.Uint32(e), le.Uint16(e[8:]))
		if err != nil {
			return nil, bad(ruleOf(err), "key of entry %d: %w", i, finding(err))
		}
		value, err := locatorString(b, le.Uint32(e[4:]), le.Uint16(e[10:]))
		if err != nil {
			return nil, bad(ruleOf(err), "value of %q: %w", key, finding(err))
		}
		if _, twice := p.values[key]; twice {
			return nil, bad(ondisk.R58, "duplicate key %q", key)
		}
		p.values[key] = value
	}
	var err error
	if p.linkage, err = parseLinkage(p.values[keyLinkage]); err != nil {
		return nil, bad(ondisk.R59, "%s is %q", keyLinkage, p.values[keyLinkage])
	}
	// A second linkage that is no GUID accepts no parent, which is all that can go wrong with it.
	p.linkage2, _ = parseLinkage(p.values[keyLinkage2])
	for _, k := range pathKeys {
		if p.values[k] != "" {
			return p, nil
		}
	}
	return nil, bad(ondisk.R60, "it has no path: none of %s", strings.Join(pathKeys, ", "))
}

// locatorString decodes the string of n bytes at off of the item b.
func locatorString(b []byte, off uint32, n uint16) (string, error) {
	if off == 0 || n == 0 || n%2 != 0 || uint64(off)+uint64(n) > uint64(len(b)) {
		return "", ondisk.Corrupt(ondisk.R56, "", 0, "%d bytes at %#x of an item of %d bytes", n, off, len(b))
	}
	s, err := decodeUTF16(b[off : uint64(off)+uint64(n)])
	if err != nil {
		return "", ondisk.Corrupt(ondisk.R57, "", 0, "%w", err)
	}
	return s, nil
}

// parseLinkage parses a GUID with or without braces. Other forms that uuid.Parse knows are refused.
func parseLinkage(s string) (uuid.UUID, error) {
	const plain = 36 // characters of a GUID without braces
	if len(s) == plain+2 && s[0] == '{' && s[len(s)-1] == '}' {
		s = s[1 : len(s)-1]
	}
	if len(s) != plain {
		return uuid.Nil, errors.New("not a GUID")
	}
	return uuid.Parse(s)
}

// linkageText is how a GUID stands in a parent locator.
func linkageText(g uuid.UUID) string { return "{" + g.String() + "}" }

// encodeParentLocator lays out the keys and values, in the order given.
func encodeParentLocator(entries [][2]string) []byte {
	b := make([]byte, locatorHeaderSize+len(entries)*locatorEntrySize)
	ondisk.PutGUID(b, locatorTypeVHDX)
	le.PutUint16(b[18:], uint16(len(entries)))
	for i, kv := range entries {
		e := locatorHeaderSize + i*locatorEntrySize
		for j, s := range kv {
			text := encodeUTF16(s)
			le.PutUint32(b[e+4*j:], uint32(len(b)))
			le.PutUint16(b[e+8+2*j:], uint16(len(text)))
			b = append(b, text...)
		}
	}
	return b
}
