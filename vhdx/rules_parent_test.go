package vhdx

import (
	"strings"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// aChild is a differencing disk with nothing in it, beside its parent.
var aChild = spec{typ: Differencing}

// locator returns a damage that gives the child a parent locator with these entries.
func locator(entries ...[2]string) func(*scene) {
	return func(s *scene) { s.setLocator(ondisk.EncodeParentLocator(entries)) }
}

// inLocator returns a damage that changes the bytes of the usual parent locator: an entry for the linkage,
// and one for the relative path.
func inLocator(do func(b []byte) []byte) func(*scene) {
	return func(s *scene) { s.setLocator(do(ondisk.EncodeParentLocator(s.spec.locator))) }
}

// entryField returns a damage that changes a field of the locator's first entry.
func entryField32(field int, v func(item []byte) uint32) func(*scene) {
	return inLocator(func(b []byte) []byte {
		ondisk.LE.PutUint32(b[ondisk.LocatorHeaderSize+field:], v(b))
		return b
	})
}

func entryField16(field int, v uint16) func(*scene) {
	return inLocator(func(b []byte) []byte {
		ondisk.LE.PutUint16(b[ondisk.LocatorHeaderSize+field:], v)
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
	linkage = [2]string{ondisk.KeyLinkage, guidText(parentGUID)}
	relPath = [2]string{ondisk.KeyRelativePath, `.\parent.vhdx`}
)

var parentRules = []ruleCase{
	{rule: ondisk.RuleNoParentLocator, name: "no parent locator", spec: aChild, damage: without(ondisk.ParentLocatorGUID)},
	{rule: ondisk.RuleNoParentLocator, name: "parent locator as a user item", spec: aChild, damage: func(s *scene) {
		s.changeItem(ondisk.ParentLocatorGUID, func(m *ondisk.MetadataItem) { m.Flags = ondisk.ItemIsUser })
	}},
	{rule: ondisk.RuleLocatorType, name: "another type", spec: aChild, damage: inLocator(func(b []byte) []byte {
		ondisk.PutGUID(b, otherGUID)
		return b
	})},
	{rule: ondisk.RuleLocatorEntries, name: "no entry", spec: aChild, damage: locator()},
	{rule: ondisk.RuleLocatorEntries, name: "entries that do not fit", spec: aChild, damage: inLocator(func(b []byte) []byte {
		ondisk.LE.PutUint16(b[18:], uint16((len(b)-ondisk.LocatorHeaderSize)/ondisk.LocatorEntrySize+1))
		return b
	})},
	{rule: ondisk.RuleLocatorEntries, name: "as many entries as fit 16 bits", spec: aChild, damage: inLocator(func(b []byte) []byte {
		ondisk.LE.PutUint16(b[18:], 65535)
		return b
	})},
	{rule: ondisk.RuleLocatorEntries, name: "strings that share gigabytes", spec: spec{typ: Differencing, metaLen: 4 * ondisk.MiB}, damage: func(s *scene) {
		s.setLocator(sharedStrings())
	}},

	{rule: ondisk.RuleLocatorString, name: "key offset 0", spec: aChild, damage: entryField32(keyOffset, func([]byte) uint32 { return 0 })},
	{rule: ondisk.RuleLocatorString, name: "value offset 0", spec: aChild, damage: entryField32(valueOffset, func([]byte) uint32 { return 0 })},
	{rule: ondisk.RuleLocatorString, name: "key length 0", spec: aChild, damage: entryField16(keyLength, 0)},
	{rule: ondisk.RuleLocatorString, name: "value length 0", spec: aChild, damage: entryField16(valueLength, 0)},
	{rule: ondisk.RuleLocatorString, name: "odd key length", spec: aChild, damage: entryField16(keyLength, 27)},
	{rule: ondisk.RuleLocatorString, name: "odd value length", spec: aChild, damage: entryField16(valueLength, 75)},
	{rule: ondisk.RuleLocatorString, name: "key beyond the item", spec: aChild, damage: entryField32(keyOffset, func(b []byte) uint32 { return uint32(len(b)) })},
	{rule: ondisk.RuleLocatorString, name: "value two bytes beyond the item", spec: aChild, damage: inLocator(func(b []byte) []byte {
		return b[:len(b)-2] // the path is last
	})},
	{rule: ondisk.RuleLocatorString, name: "value that wraps", spec: aChild, damage: entryField32(valueOffset, func([]byte) uint32 { return 1<<32 - 2 })},

	{rule: ondisk.RuleLocatorText, name: "half a surrogate in a key", spec: aChild, damage: inLocator(func(b []byte) []byte {
		ondisk.LE.PutUint16(b[ondisk.LE.Uint32(b[ondisk.LocatorHeaderSize+keyOffset:]):], 0xD800)
		return b
	})},
	{rule: ondisk.RuleLocatorText, name: "surrogates the wrong way round", spec: aChild, damage: inLocator(func(b []byte) []byte {
		at := ondisk.LE.Uint32(b[ondisk.LocatorHeaderSize+ondisk.LocatorEntrySize+valueOffset:])
		ondisk.LE.PutUint16(b[at:], 0xDC00)
		ondisk.LE.PutUint16(b[at+2:], 0xD800)
		return b
	})},
	{rule: ondisk.RuleLocatorText, name: "NUL in a value", spec: aChild, damage: locator(linkage, [2]string{ondisk.KeyRelativePath, "parent.vhdx\x00.txt"})},
	{rule: ondisk.RuleLocatorText, name: "NUL at the end of a value", spec: aChild, damage: locator(linkage, [2]string{ondisk.KeyRelativePath, "parent.vhdx\x00"})}, // O9
	{rule: ondisk.RuleLocatorText, name: "NUL at the end of a key", spec: aChild, damage: locator([2]string{ondisk.KeyLinkage + "\x00", guidText(parentGUID)}, relPath)},
	{rule: ondisk.RuleLocatorKeyTwice, name: "linkage twice", spec: aChild, damage: locator(linkage, linkage, relPath)},
	{rule: ondisk.RuleLocatorKeyTwice, name: "unknown key twice", spec: aChild, damage: locator(linkage, relPath, [2]string{"x", "1"}, [2]string{"x", "2"})},
	{rule: ondisk.RuleLocatorKeyTwice, name: "keys that differ in case", spec: aChild, good: true, damage: locator(linkage, relPath, [2]string{"Parent_Linkage", "x"})},

	{rule: ondisk.RuleNoLinkage, name: "no linkage", spec: aChild, damage: locator(relPath)},
	{rule: ondisk.RuleNoLinkage, name: "linkage of another case", spec: aChild, damage: locator([2]string{"Parent_Linkage", guidText(parentGUID)}, relPath)},
	{rule: ondisk.RuleNoLinkage, name: "linkage2 alone", spec: aChild, damage: locator([2]string{ondisk.KeyLinkage2, guidText(parentGUID)}, relPath)},
	{rule: ondisk.RuleNoLinkage, name: "no GUID", spec: aChild, damage: locator([2]string{ondisk.KeyLinkage, "{parent}"}, relPath)},
	{rule: ondisk.RuleNoLinkage, name: "braces alone", spec: aChild, damage: locator([2]string{ondisk.KeyLinkage, "{}"}, relPath)},
	{rule: ondisk.RuleNoLinkage, name: "GUID of too many digits", spec: aChild, damage: locator([2]string{ondisk.KeyLinkage, guidText(parentGUID) + "0"}, relPath)},
	{rule: ondisk.RuleNoLinkage, name: "GUID as a URN", spec: aChild, damage: locator([2]string{ondisk.KeyLinkage, parentGUID.URN()}, relPath)},
	{rule: ondisk.RuleNoLinkage, name: "GUID without dashes", spec: aChild, damage: locator([2]string{ondisk.KeyLinkage, strings.ReplaceAll(parentGUID.String(), "-", "")}, relPath)},
	{rule: ondisk.RuleNoParentPath, name: "no path", spec: aChild, damage: locator(linkage)},
	{rule: ondisk.RuleNoParentPath, name: "path under an unknown key", spec: aChild, damage: locator(linkage, [2]string{"path", "parent.vhdx"})},

	{rule: ondisk.RuleParentNotFound, name: "no file there", spec: aChild, damage: func(s *scene) { s.parent = nil }},
	{rule: ondisk.RuleParentNotFound, name: "another case of the name", spec: aChild, good: true, damage: locator(linkage, [2]string{ondisk.KeyRelativePath, "PARENT.VHDX"})},
	{rule: ondisk.RuleParentNotFound, name: "no file where parent= says", spec: aChild, damage: func(s *scene) { s.opts.Parents = []string{"/nonexistent/parent.vhdx"} }},
	{rule: ondisk.RuleParentNotFound, name: "outside the directory", spec: aChild, damage: locator(linkage, [2]string{ondisk.KeyRelativePath, `..\..\base.vhdx`})},
	{rule: ondisk.RuleParentNotFound, name: "parent of the parent", spec: aChild, damage: func(s *scene) {
		s.parent = build(spec{typ: Differencing, dataWrite: parentGUID, locator: parentEntries("grandparent.vhdx", otherGUID)})
	}},
	{rule: ondisk.RuleParentUnreadable, name: "no VHDX", spec: aChild, damage: func(s *scene) { s.parent.write([]byte("conectix"), 0) }},
	{rule: ondisk.RuleParentUnreadable, name: "damaged BAT", spec: aChild, damage: func(s *scene) { s.parent.setBlockEntry(1, 4) }},
	{rule: ondisk.RuleParentUnreadable, name: "log that cannot be replayed", spec: aChild, damage: func(s *scene) { s.parent.nameLog() }},
	{rule: ondisk.RuleParentChanged, name: "changed since", spec: aChild, damage: func(s *scene) {
		s.parent.setHeaders(func(h *ondisk.Header) { h.DataWriteGUID = otherGUID })
	}},
	{rule: ondisk.RuleParentChanged, name: "linkage in the older header", spec: aChild, damage: func(s *scene) {
		s.parent.setHeaders(func(h *ondisk.Header) {
			if h.SequenceNumber == 2 {
				h.DataWriteGUID = otherGUID
			}
		})
	}},
	{rule: ondisk.RuleParentChanged, name: "linkage is the FileWriteGuid", spec: aChild, damage: locator([2]string{ondisk.KeyLinkage, guidText(otherGUID)}, relPath)},
	{rule: ondisk.RuleParentChanged, name: "all-zero linkage2", spec: aChild, damage: func(s *scene) {
		locator([2]string{ondisk.KeyLinkage, guidText(otherGUID)}, [2]string{ondisk.KeyLinkage2, "{00000000-0000-0000-0000-000000000000}"}, relPath)(s)
		s.parent.setHeaders(func(h *ondisk.Header) { h.DataWriteGUID = [16]byte{} })
	}},
	{rule: ondisk.RuleParentSectorSize, name: "4096 on 512", spec: aChild, damage: func(s *scene) { s.parent = build(spec{sectorSize: 4096}) }},
	{rule: ondisk.RuleParentSectorSize, name: "512 on 4096", spec: spec{typ: Differencing, sectorSize: 4096}, damage: func(s *scene) { s.parent = build(spec{}) }},
	{rule: ondisk.RuleChainEndless, name: "its own parent", spec: aChild, damage: locator(linkage, [2]string{ondisk.KeyRelativePath, "image.vhdx"})},
	{rule: ondisk.RuleChainEndless, name: "child of its child", spec: aChild, damage: func(s *scene) {
		s.setHeaders(func(h *ondisk.Header) { h.DataWriteGUID = otherGUID })
		s.parent = build(spec{typ: Differencing, locator: parentEntries("image.vhdx", otherGUID)})
	}},
}

// sharedStrings returns a parent locator of 1 MiB with as many entries as it can have, each with a key and a
// value of 64 KiB that overlap those of the others: decoded they would take 8 GiB.
func sharedStrings() []byte {
	const n, length = 65535, 65534
	b := make([]byte, ondisk.MaxItemSize)
	for i := range b[:ondisk.MaxItemSize/2] {
		ondisk.LE.PutUint16(b[2*i:], uint16('a'+i%13)+uint16(i/512))
	}
	entries := ondisk.EncodeParentLocator([][2]string{{"k", "v"}})[:ondisk.LocatorHeaderSize]
	copy(b, entries)
	ondisk.LE.PutUint16(b[18:], n)
	for i := range n {
		e := b[ondisk.LocatorHeaderSize+i*ondisk.LocatorEntrySize:]
		at := uint32(ondisk.MaxItemSize - 2*(length-2*(i%1000)))
		ondisk.LE.PutUint32(e[keyOffset:], at)
		ondisk.LE.PutUint32(e[valueOffset:], at)
		ondisk.LE.PutUint16(e[keyLength:], uint16(length-2*(i/1000)))
		ondisk.LE.PutUint16(e[valueLength:], length)
	}
	return b
}
