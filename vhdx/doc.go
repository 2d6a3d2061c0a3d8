// Package vhdx is the format and the engine: it opens VHDX images, checks them against the rules of
// MS-VHDX, and maps bytes of the virtual disk to bytes of image files.
//
// An image file is a header section of 1 MiB, and behind it, in any order and each at a multiple of 1 MiB:
//
//	| header section | log | metadata region | BAT region | payload and sector bitmap blocks ... |
//	 0                1 MiB                                                                   file size
//
//	| file type identifier | header 1 | header 2 | region table 1 | region table 2 | reserved |
//	 0                      64 KiB     128 KiB    192 KiB          256 KiB          320 KiB
//
// The words of the standard, as used here:
//
//	payload block         BlockSize bytes of the virtual disk
//	sector bitmap block   1 MiB with a bit for each logical sector of a chunk: here, or in the parent?
//	chunk                 the payload blocks that share a sector bitmap block; the chunk ratio says how many
//	BAT entry             64 bits: the state of a block and where it is in the file
//	region table entry    where the BAT and the metadata are
//	metadata item         block size, disk size, sector sizes, disk id, parent locator
//	parent locator        how a differencing disk finds its parent, and knows it again
//	diskOff, fileOff      byte of the virtual disk, byte of an image file
//
// A chain of images is a list of layers: the image itself, its parent, the parent's parent. Reading walks
// down the layers until one of them holds the bytes; where none does, they are zeros.
package vhdx
