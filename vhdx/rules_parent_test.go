package vhdx

import (
	"strings"

	"vhdxfs/internal/ondisk"
)

// aChild is a differencing disk with nothing in it, beside its parent.
var aChild = spec{typ: Differencing}

// locator returns a damage that gives the child a parent locator with these entries.
func locator(entries ...[2]string) func(*scene) {
	return func(s *scene) { s.setLocator(encodeParentLocator(entries)) }
}

// inLocator returns a damage that changes the bytes of the usual parent locator: an entry for the linkage,
// and one for the relative path.
func inLocator(do func(b []byte) []byte) func(*scene) {
	return func(s *scene) { s.setLocator(do(encodeParentLocator(s.spec.locator))) }
}

// entryField returns a damage that changes a field of the locator's first entry.
func entryField32(field int, v func(item []byte) uint32) func(*scene) {
	return inLocator(func(b []byte) []byte {
		le.PutUint32(b[locatorHeaderSize+field:], v(b))
		return b
	})
}

func entryField16(field int, v uint16) func(*scene) {
	return inLocator(func(b []byte) []byte {
		le.PutUint16(b[locatorHeaderSize+field:], v)
		return b
	})
}

// Fields of a locator entry.
const (
	keyOffset   = 0
	valueOffset = 4
	keyLength   = 8
	valueLength = 10
)

var (
	linkage = [2]string{keyLinkage, guidText(parentGUID)}
	relPath = [2]string{keyRelativePath, `.\parent.vhdx`}
)

var parentRules = []ruleCase{
	{rule: ondisk.R53, name: "no parent locator", spec: aChild, damage: without(parentLocatorGUID)},
	{rule: ondisk.R53, name: "parent locator as a user item", spec: aChild, damage: func(s *scene) {
		s.changeItem(parentLocatorGUID, func(m *metadataItem) { m.Flags = itemIsUser })
	}},
	{rule: ondisk.R54, name: "another type", spec: aChild, damage: inLocator(func(b []byte) []byte {
		ondisk.PutGUID(b, otherGUID)
		return b
	})},
	{rule: ondisk.R55, name: "no entry", spec: aChild, damage: locator()},
	{rule: ondisk.R55, name: "entries that do not fit", spec: aChild, damage: inLocator(func(b []byte) []byte {
		le.PutUint16(b[18:], uint16((len(b)-locatorHeaderSize)/locatorEntrySize+1))
		return b
	})},
	{rule: ondisk.R55, name: "as many entries as fit 16 bits", spec: aChild, damage: inLocator(func(b []byte) []byte {
		le.PutUint16(b[18:], 65535)
		return b
	})},
	{rule: ondisk.R55, name: "strings that share gigabytes", spec: spec{typ: Differencing, metaLen: 4 * mib}, damage: func(s *scene) {
		s.setLocator(sharedStrings())
	}},

	{rule: ondisk.R56, name: "key offset 0", spec: aChild, damage: entryField32(keyOffset, func([]byte) uint32 { return 0 })},
	{rule: ondisk.R56, name: "value offset 0", spec: aChild, damage: entryField32(valueOffset, func([]byte) uint32 { return 0 })},
	{rule: ondisk.R56, name: "key length 0", spec: aChild, damage: entryField16(keyLength, 0)},
	{rule: ondisk.R56, name: "value length 0", spec: aChild, damage: entryField16(valueLength, 0)},
	{rule: ondisk.R56, name: "odd key length", spec: aChild, damage: entryField16(keyLength, 27)},
	{rule: ondisk.R56, name: "odd value length", spec: aChild, damage: entryField16(valueLength, 75)},
	{rule: ondisk.R56, name: "key beyond the item", spec: aChild, damage: entryField32(keyOffset, func(b []byte) uint32 { return uint32(len(b)) })},
	{rule: ondisk.R56, name: "value two bytes beyond the item", spec: aChild, damage: inLocator(func(b []byte) []byte {
		return b[:len(b)-2] // the path is last
	})},
	{rule: ondisk.R56, name: "value that wraps", spec: aChild, damage: entryField32(valueOffset, func([]byte) uint32 { return 1<<32 - 2 })},

	{rule: ondisk.R57, name: "half a surrogate in a key", spec: aChild, damage: inLocator(func(b []byte) []byte {
		le.PutUint16(b[le.Uint32(b[locatorHeaderSize+keyOffset:]):], 0xD800)
		return b
	})},
	{rule: ondisk.R57, name: "surrogates the wrong way round", spec: aChild, damage: inLocator(func(b []byte) []byte {
		at := le.Uint32(b[locatorHeaderSize+locatorEntrySize+valueOffset:])
		le.PutUint16(b[at:], 0xDC00)
		le.PutUint16(b[at+2:], 0xD800)
		return b
	})},
	{rule: ondisk.R57, name: "NUL in a value", spec: aChild, damage: locator(linkage, [2]string{keyRelativePath, "parent.vhdx\x00.txt"})},
	{rule: ondisk.R57, name: "NUL at the end of a value", spec: aChild, damage: locator(linkage, [2]string{keyRelativePath, "parent.vhdx\x00"})}, // O9
	{rule: ondisk.R57, name: "NUL at the end of a key", spec: aChild, damage: locator([2]string{keyLinkage + "\x00", guidText(parentGUID)}, relPath)},
	{rule: ondisk.R58, name: "linkage twice", spec: aChild, damage: locator(linkage, linkage, relPath)},
	{rule: ondisk.R58, name: "unknown key twice", spec: aChild, damage: locator(linkage, relPath, [2]string{"x", "1"}, [2]string{"x", "2"})},
	{rule: ondisk.R58, name: "keys that differ in case", spec: aChild, good: true, damage: locator(linkage, relPath, [2]string{"Parent_Linkage", "x"})},

	{rule: ondisk.R59, name: "no linkage", spec: aChild, damage: locator(relPath)},
	{rule: ondisk.R59, name: "linkage of another case", spec: aChild, damage: locator([2]string{"Parent_Linkage", guidText(parentGUID)}, relPath)},
	{rule: ondisk.R59, name: "linkage2 alone", spec: aChild, damage: locator([2]string{keyLinkage2, guidText(parentGUID)}, relPath)},
	{rule: ondisk.R59, name: "no GUID", spec: aChild, damage: locator([2]string{keyLinkage, "{parent}"}, relPath)},
	{rule: ondisk.R59, name: "braces alone", spec: aChild, damage: locator([2]string{keyLinkage, "{}"}, relPath)},
	{rule: ondisk.R59, name: "GUID of too many digits", spec: aChild, damage: locator([2]string{keyLinkage, guidText(parentGUID) + "0"}, relPath)},
	{rule: ondisk.R59, name: "GUID as a URN", spec: aChild, damage: locator([2]string{keyLinkage, parentGUID.URN()}, relPath)},
	{rule: ondisk.R59, name: "GUID without dashes", spec: aChild, damage: locator([2]string{keyLinkage, strings.ReplaceAll(parentGUID.String(), "-", "")}, relPath)},
	{rule: ondisk.R60, name: "no path", spec: aChild, damage: locator(linkage)},
	{rule: ondisk.R60, name: "path under an unknown key", spec: aChild, damage: locator(linkage, [2]string{"path", "parent.vhdx"})},

	{rule: ondisk.R61, name: "no file there", spec: aChild, damage: func(s *scene) { s.parent = nil }},
	{rule: ondisk.R61, name: "another case of the name", spec: aChild, good: true, damage: locator(linkage, [2]string{keyRelativePath, "PARENT.VHDX"})},
	{rule: ondisk.R61, name: "no file where parent= says", spec: aChild, damage: func(s *scene) { s.opts.Parents = []string{"/nonexistent/parent.vhdx"} }},
	{rule: ondisk.R61, name: "outside the folder", spec: aChild, damage: locator(linkage, [2]string{keyRelativePath, `..\..\base.vhdx`})},
	{rule: ondisk.R61, name: "parent of the parent", spec: aChild, damage: func(s *scene) {
		s.parent = build(spec{typ: Differencing, dataWrite: parentGUID, locator: parentEntries("grandparent.vhdx", otherGUID)})
	}},
	{rule: ondisk.R62, name: "no VHDX", spec: aChild, damage: func(s *scene) { s.parent.write([]byte("conectix"), 0) }},
	{rule: ondisk.R62, name: "damaged BAT", spec: aChild, damage: func(s *scene) { s.parent.setBlockEntry(1, 4) }},
	{rule: ondisk.R62, name: "log that cannot be replayed", spec: aChild, damage: func(s *scene) { s.parent.nameLog() }},
	{rule: ondisk.R63, name: "changed since", spec: aChild, damage: func(s *scene) {
		s.parent.setHeaders(func(h *header) { h.DataWriteGUID = otherGUID })
	}},
	{rule: ondisk.R63, name: "linkage in the older header", spec: aChild, damage: func(s *scene) {
		s.parent.setHeaders(func(h *header) {
			if h.SequenceNumber == 2 {
				h.DataWriteGUID = otherGUID
			}
		})
	}},
	{rule: ondisk.R63, name: "linkage is the FileWriteGuid", spec: aChild, damage: locator([2]string{keyLinkage, guidText(otherGUID)}, relPath)},
	{rule: ondisk.R63, name: "all-zero linkage2", spec: aChild, damage: func(s *scene) {
		locator([2]string{keyLinkage, guidText(otherGUID)}, [2]string{keyLinkage2, "{00000000-0000-0000-0000-000000000000}"}, relPath)(s)
		s.parent.setHeaders(func(h *header) { h.DataWriteGUID = [16]byte{} })
	}},
	{rule: ondisk.R64, name: "4096 on 512", spec: aChild, damage: func(s *scene) { s.parent = build(spec{sectorSize: 4096}) }},
	{rule: ondisk.R64, name: "512 on 4096", spec: spec{typ: Differencing, sectorSize: 4096}, damage: func(s *scene) { s.parent = build(spec{}) }},
	{rule: ondisk.R65, name: "its own parent", spec: aChild, damage: locator(linkage, [2]string{keyRelativePath, "image.vhdx"})},
	{rule: ondisk.R65, name: "child of its child", spec: aChild, damage: func(s *scene) {
		s.setHeaders(func(h *header) { h.DataWriteGUID = otherGUID })
		s.parent = build(spec{typ: Differencing, locator: parentEntries("image.vhdx", otherGUID)})
	}},
}

// sharedStrings returns a parent locator of 1 MiB with as many entries as it can have, each with a key and a
// value of 64 KiB that overlap those of the others: decoded they would take 8 GiB.
func sharedStrings() []byte {
	const n, length = 65535, 65534
	b := make([]byte, maxItemSize)
	for i := range b[:maxItemSize/2] {
		le.PutUint16(b[2*i:], uint16('a'+i%13)+uint16(i/512))
	}
	entries := encodeParentLocator([][2]string{{"k", "v"}})[:locatorHeaderSize]
	copy(b, entries)
	le.PutUint16(b[18:], n)
	for i := range n {
		e := b[locatorHeaderSize+i*locatorEntrySize:]
		at := uint32(maxItemSize - 2*(length-2*(i%1000)))
		le.PutUint32(e[keyOffset:], at)
		le.PutUint32(e[valueOffset:], at)
		le.PutUint16(e[keyLength:], uint16(length-2*(i/1000)))
		le.PutUint16(e[valueLength:], length)
	}
	return b
}
