// Package content tells by its bytes what a file, a device or a stream holds: a VHDX image, also one that has lost its
// file type identifier, an image or an archive of another format, a partition table, or nothing that is known, which is
// what a raw disk is. Every command asks it, so that all say the same.
//
// It reads some 64 places of the first 64 MiB and the last 512 bytes, and believes none of them: what a format says about
// itself beyond its signature is for its own reader to check.
package content
