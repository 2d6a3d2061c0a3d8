// Package convert copies a disk into a new VHDX image, a raw file or a block device.
//
// The disk is cut into pieces of 1 MiB. A producer lists those that hold data, workers read them, leave out what is
// zero, and write. Room in the output is given out in the order of the disk, whichever worker is first, so that
// the same input makes the same output. Memory is bounded by the number of workers.
package convert
