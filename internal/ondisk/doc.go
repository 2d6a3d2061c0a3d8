// Package ondisk holds what every structure of a VHDX file has in common: the byte order of numbers
// and GUIDs, the checksum, and the validation rules with the error that names the broken one.
//
// All integers of the format are unsigned and little-endian (MS-VHDX 2). GUIDs are stored in Windows
// order: the first four bytes and the next two pairs are little-endian, the last eight as printed.
package ondisk
