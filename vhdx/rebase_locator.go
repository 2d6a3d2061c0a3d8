package vhdx

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// rewriteLocator replaces the parent locator by one with the given keys and values. Table and item change in one
// entry of the log, so that a cut leaves the old locator or the new one. When it returns the new one is durable and
// in its place, and the image is clean. What the disk reads as is the caller's business, and so is its DataWriteGuid.
// Changes of a disk in use wait.
func (w *writer) rewriteLocator(values map[string]string) error {
	if err := w.clean(); err != nil { // most of it is synced before any change has to wait
		return err
	}
	return w.cleanThen(func() error { return w.replaceLocator(values) })
}

// replaceLocator is rewriteLocator for a caller that holds the gate alone, and the committer's mu, and has made the image clean.
func (w *writer) replaceLocator(values map[string]string) error {
	if err := w.logLocator(ondisk.EncodeParentLocator(locatorEntries(values))); err != nil {
		return err
	}
	if err := w.makeClean(); err != nil {
		return err
	}
	return w.current().readLocator()
}

// locatorEntries returns the keys and values in the order in which new images have them, unknown keys behind.
func locatorEntries(values map[string]string) [][2]string {
	rank := func(key string) int {
		known := append([]string{ondisk.KeyLinkage, ondisk.KeyLinkage2}, ondisk.PathKeys...)
		if i := slices.Index(known, key); i >= 0 {
			return i
		}
		return len(known)
	}
	var entries [][2]string
	for k, v := range values {
		entries = append(entries, [2]string{k, v})
	}
	slices.SortFunc(entries, func(a, b [2]string) int {
		return cmp.Or(cmp.Compare(rank(a[0]), rank(b[0])), cmp.Compare(a[0], b[0]))
	})
	return entries
}

// logLocator makes the pages that hold the metadata table's entry of the locator, and the locator itself, part of the
// next log entry. It finds the item another place in the metadata region where it has become too long for its old one. The caller
// holds the gate alone.
func (w *writer) logLocator(item []byte) error {
	l := w.current()
	i := slices.IndexFunc(l.items, func(m ondisk.MetadataItem) bool { return m.ID == ondisk.ParentLocatorGUID && !m.User() })
	m := l.items[i] // the image has a parent, so it has a locator
	at, ok := l.placeForItem(i, uint32(len(item)))
	if !ok {
		return fmt.Errorf("the metadata region has no room for a parent locator of %d bytes; use vhdxfs flatten instead", len(item))
	}
	m.Offset, m.Length = at, uint32(len(item))

	pages := make(map[int64]*[ondisk.PageSize]byte)
	put := func(off int64, b []byte) error {
		for len(b) > 0 {
			page := off &^ (ondisk.PageSize - 1)
			if pages[page] == nil {
				pages[page] = new([ondisk.PageSize]byte)
				if err := readFull(l.src, pages[page][:], page, "metadata"); err != nil {
					return err
				}
			}
			n := copy(pages[page][off-page:], b)
			b, off = b[n:], off+int64(n)
		}
		return nil
	}
	entry := ondisk.EncodeMetadataTable([]ondisk.MetadataItem{m})[ondisk.MetadataHeaderSize:][:ondisk.MetadataEntrySize]
	if err := put(l.metadataOffset()+ondisk.MetadataHeaderSize+int64(i)*ondisk.MetadataEntrySize, entry); err != nil {
		return err
	}
	if err := put(l.metadataOffset()+int64(at), item); err != nil {
		return err
	}
	if len(pages) > maxDirtyPages {
		return fmt.Errorf("a parent locator of %d bytes does not fit into one log entry; use vhdxfs flatten instead", len(item))
	}

	if err := w.announce(fileWrite); err != nil {
		return err
	}
	for _, off := range slices.Sorted(maps.Keys(pages)) {
		if err := w.reservePage(off); err != nil {
			return err
		}
	}
	w.dirty.addRaw(pages, false)
	l.setItem(i, m)
	w.changed()
	return nil
}

// reservePage gives a page of the file its space: it is needed when the page goes from the log to its place, and then
// there may be none.
func (w *writer) reservePage(off int64) error {
	var b [ondisk.PageSize]byte
	if err := readFull(w.current().src, b[:], off, "metadata"); err != nil {
		return err
	}
	return w.space.reserve(off, b[:])
}

// placeForItem returns where in the metadata region, behind the table, item i has room if it becomes n bytes long:
// where it is, or else in the first gap.
func (l *layer) placeForItem(i int, n uint32) (at uint32, ok bool) {
	region, _ := l.tables.find(ondisk.MetadataRegionGUID)
	var others []ondisk.MetadataItem
	for j, m := range l.items {
		if j != i && m.Length > 0 {
			others = append(others, m)
		}
	}
	slices.SortFunc(others, func(a, b ondisk.MetadataItem) int { return cmp.Compare(a.Offset, b.Offset) })
	free := func(at uint64) bool {
		if at+uint64(n) > uint64(region.Length) {
			return false
		}
		return !slices.ContainsFunc(others, func(m ondisk.MetadataItem) bool {
			return at < uint64(m.Offset)+uint64(m.Length) && uint64(m.Offset) < at+uint64(n)
		})
	}
	if free(uint64(l.items[i].Offset)) {
		return l.items[i].Offset, true
	}
	if free(ondisk.MetadataTableSize) {
		return ondisk.MetadataTableSize, true
	}
	for _, m := range others {
		if end := uint64(m.Offset) + uint64(m.Length); free(end) {
			return uint32(end), true // #nosec G115 -- free has bounded it by the region
		}
	}
	return 0, false
}

// expectParent makes the image accept a parent with the DataWriteGuid now, and one with the DataWriteGuid coming, if
// that is not zero (MS-VHDX 2.6.2.6.3).
func (w *writer) expectParent(now, coming uuid.UUID) error {
	return w.rewriteLocator(w.expecting(now, coming))
}

// expecting returns the keys and values of the locator for expectParent.
func (w *writer) expecting(now, coming uuid.UUID) map[string]string {
	values := maps.Clone(w.current().meta.locator.Values)
	values[ondisk.KeyLinkage] = ondisk.LinkageText(now)
	delete(values, ondisk.KeyLinkage2)
	if coming != uuid.Nil {
		values[ondisk.KeyLinkage2] = ondisk.LinkageText(coming)
	}
	return values
}

// linkParent gives the locator the keys that parentKeys returned. Others that are not known stay.
func (w *writer) linkParent(keys [][2]string) error {
	values := maps.Clone(w.current().meta.locator.Values)
	for _, k := range append([]string{ondisk.KeyLinkage2}, ondisk.PathKeys...) {
		delete(values, k)
	}
	for _, kv := range keys {
		values[kv[0]] = kv[1]
	}
	return w.rewriteLocator(values)
}

// setDataWrite makes id the DataWriteGuid, durably. The later writes of this writer keep it.
func (w *writer) setDataWrite(id uuid.UUID) error {
	if err := w.clean(); err != nil {
		return err
	}
	w.headers.keepDataWrite(id)
	w.gate.RLock()
	defer w.gate.RUnlock()
	return w.announce(dataWrite)
}
