// Package disk opens disks to read from any kind of file: a VHDX or VHD image with its parents, a raw file or a
// block device.
package disk
