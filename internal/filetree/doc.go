// Package filetree reads the files of a file system by its bytes alone, without mounting it: ext2 to ext4, XFS, NTFS, FAT,
// exFAT and ISO 9660. Nothing on the disk is trusted: every number is checked where it is used, no directory is read twice,
// and a file has at most as much data as the disk has bytes. A journal is not replayed.
//
// Libraries were tried first; docs/security.md says why none of them is used.
package filetree
