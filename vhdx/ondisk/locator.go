package ondisk

import (
	"errors"
	"strings"

	"github.com/google/uuid"
)

// Sizes in bytes of the parts of a parent locator (MS-VHDX 2.6.2.6.1 and 2.6.2.6.2).
const (
	LocatorHeaderSize = 20
	LocatorEntrySize  = 12
)

// locatorTypeVHDX is the only type of parent locator there is (MS-VHDX 2.6.2.6.1).
var locatorTypeVHDX = uuid.MustParse("B04AEFB7-D19E-4A81-B789-25B8E9445913")

// The keys of a parent locator (MS-VHDX 2.6.2.6.3). They are case sensitive.
const (
	KeyLinkage      = "parent_linkage"
	KeyLinkage2     = "parent_linkage2"
	KeyRelativePath = "relative_path"
	KeyVolumePath   = "volume_path"
	KeyAbsolutePath = "absolute_win32_path"
)

// PathKeys are the keys that say where the parent is, in the order in which they are tried.
var PathKeys = []string{KeyRelativePath, KeyVolumePath, KeyAbsolutePath}

// A ParentLocator says how to find the parent and how to know it (MS-VHDX 2.6.2.6).
type ParentLocator struct {
	Linkage  uuid.UUID         // the DataWriteGuid that the parent has to have
	Linkage2 uuid.UUID         // a second value to accept; zero if there is none
	Values   map[string]string // by key, unknown keys included
}

// Accepts reports whether a parent with the given DataWriteGuid is the right one.
func (p *ParentLocator) Accepts(dataWrite uuid.UUID) bool {
	return dataWrite == p.Linkage || p.Linkage2 != uuid.Nil && dataWrite == p.Linkage2
}

// DecodeParentLocator decodes and checks the parent locator in b, the metadata item at file offset off.
// The caller has seen that b holds a locator header. The error is a *FormatError.
func DecodeParentLocator(b []byte, off int64) (*ParentLocator, error) {
	bad := func(r Rule, format string, args ...any) error {
		return Corrupt(r, "parent locator", off, format, args...)
	}
	if t := GUID(b); t != locatorTypeVHDX {
		return nil, bad(RuleLocatorType, "unknown type %v", t)
	}
	n := int(LE.Uint16(b[18:]))
	if n == 0 || LocatorHeaderSize+n*LocatorEntrySize > len(b) {
		return nil, bad(RuleLocatorEntries, "%d entries in an item of %d bytes", n, len(b))
	}
	p := &ParentLocator{Values: make(map[string]string)}
	room := MaxItemSize // bytes; all strings of an item take less unless thousands of them share a place
	for i := range n {
		e := b[LocatorHeaderSize+i*LocatorEntrySize:]
		room -= int(LE.Uint16(e[8:])) + int(LE.Uint16(e[10:]))
		if room < 0 {
			return nil, bad(RuleLocatorEntries, "keys and values of more than %d bytes in an item of %d", MaxItemSize, len(b))
		}
		key, err := locatorString(b, LE.Uint32(e), LE.Uint16(e[8:]))
		if err != nil {
			return nil, bad(RuleOf(err), "key of entry %d: %w", i, Finding(err))
		}
		value, err := locatorString(b, LE.Uint32(e[4:]), LE.Uint16(e[10:]))
		if err != nil {
			return nil, bad(RuleOf(err), "value of %q: %w", key, Finding(err))
		}
		if _, twice := p.Values[key]; twice {
			return nil, bad(RuleLocatorKeyTwice, "duplicate key %q", key)
		}
		p.Values[key] = value
	}
	var err error
	if p.Linkage, err = ParseLinkage(p.Values[KeyLinkage]); err != nil {
		return nil, bad(RuleNoLinkage, "%s is %q, not a GUID", KeyLinkage, p.Values[KeyLinkage])
	}
	// A second linkage that is no GUID accepts no parent, which is all that can go wrong with it.
	p.Linkage2, _ = ParseLinkage(p.Values[KeyLinkage2])
	for _, k := range PathKeys {
		if p.Values[k] != "" {
			return p, nil
		}
	}
	return nil, bad(RuleNoParentPath, "it has no path: none of %s", strings.Join(PathKeys, ", "))
}

// locatorString decodes the string of n bytes at off of the item b.
func locatorString(b []byte, off uint32, n uint16) (string, error) {
	if off == 0 || n == 0 || n%2 != 0 || uint64(off)+uint64(n) > uint64(len(b)) {
		return "", Corrupt(RuleLocatorString, "", 0, "%d bytes at %#x of an item of %d bytes", n, off, len(b))
	}
	s, err := decodeUTF16(b[off : uint64(off)+uint64(n)])
	if err != nil {
		return "", Corrupt(RuleLocatorText, "", 0, "%w", err)
	}
	return s, nil
}

// ParseLinkage parses a GUID with or without braces. Other forms that uuid.Parse knows are refused.
func ParseLinkage(s string) (uuid.UUID, error) {
	const plain = 36 // characters of a GUID without braces
	if len(s) == plain+2 && s[0] == '{' && s[len(s)-1] == '}' {
		s = s[1 : len(s)-1]
	}
	if len(s) != plain {
		return uuid.Nil, errors.New("not a GUID")
	}
	return uuid.Parse(s)
}

// LinkageText is how a GUID stands in a parent locator.
func LinkageText(g uuid.UUID) string { return "{" + g.String() + "}" }

// EncodeParentLocator lays out the keys and values, in the order given. Each has at most 65535 bytes of UTF-16, and all of them at
// most MaxItemSize.
func EncodeParentLocator(entries [][2]string) []byte {
	b := make([]byte, LocatorHeaderSize+len(entries)*LocatorEntrySize)
	PutGUID(b, locatorTypeVHDX)
	LE.PutUint16(b[18:], uint16(len(entries)))
	for i, kv := range entries {
		e := LocatorHeaderSize + i*LocatorEntrySize
		for j, s := range kv {
			text := EncodeUTF16(s)
			LE.PutUint32(b[e+4*j:], uint32(len(b)))
			LE.PutUint16(b[e+8+2*j:], uint16(len(text)))
			b = append(b, text...)
		}
	}
	return b
}
