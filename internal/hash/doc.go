// Package hash computes digests of disks, SHA-256: of the whole disk, the same as of the raw file with its bytes, and of each
// block of 1 MiB. What no file holds is known to be zero, and is not read.
//
// Blocks are read, and their digests computed, by several goroutines at once; the digest of the whole disk is computed by one,
// in the order of the disk. A List stores the digests of the blocks that are not zero, to compare the disk with later.
package hash
