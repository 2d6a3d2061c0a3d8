// Package undofile is the codec of undo files. An undo file holds what the bytes of an image were before a repair changed them,
// and how to know the image as the repair left it. It is written once, from front to end, and all numbers in it are
// little-endian:
//
//	header | "vhdxundo" | version 4 | CRC-32C 4 | old size 8 | new size 8 | FileWriteGuid 16 | time 8 | n 4 | reserved 4 | path n |
//	record | file offset 8 | n 4 | states 4 | CRC-32C 4 | reserved 4 | states x CRC-32C 4 of each 512 bytes | old bytes n |
//	...
//	end    | records 8     | 0   | 0        | CRC-32C 4 | reserved 4 |
//
// The sizes are those of the image file, in bytes, the FileWriteGuid is the one that the repair gave it, the time is
// in nanoseconds since 1970, the path is the image's. A state is what the repair puts in the place of the old bytes:
// one, or two where it does so in two steps. Each checksum covers the header or record that it is in, itself as zeros.
//
// The package knows nothing of images. What is done with an undo file is in package vhdx, in the files undo_*.
package undofile
