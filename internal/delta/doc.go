// Package delta makes differencing images after the fact: what one disk has to change to become another; and applies them.
//
// A delta is verified as a whole before anything changes: its parent is known by DataWriteGuid, and its content by a digest
// that the image has in its metadata. The digest is the SHA-256 of
//
//	the disk size, 8 bytes, and the DataWriteGuid of the delta, 16 bytes
//	for each MiB of the disk in which the delta holds sectors, in order:
//	    its number, 8 bytes; 1 byte that is 1 if the delta holds all of it as zeros, and else
//	    a bit for each 512 bytes that the delta holds, 256 bytes; the MiB, zeros where the delta holds nothing
//
// with little-endian numbers. So it does not depend on how the image stores what it holds.
package delta
