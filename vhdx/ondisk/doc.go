// Package ondisk decodes and encodes the structures of a VHDX file, those of the log apart (MS-VHDX 2.2, 2.5 and 2.6): the
// headers, the region table, the metadata table, BAT entries and the parent locator. It knows the geometry of a disk, the
// rules that every image has to keep, and the error that names a broken one. It reads and writes no file, and decides
// nothing that needs more than one structure.
//
// Values of its types are not changed behind the caller's back, so any number of goroutines may use them.
//
// All integers of the format are unsigned and little-endian (MS-VHDX 2). GUIDs are stored in Windows
// order: the first four bytes and the next two pairs are little-endian, the last eight as printed.
package ondisk
