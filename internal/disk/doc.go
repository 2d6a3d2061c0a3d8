// Package disk opens disks to read, whatever holds them: a VHDX image with its parents, a raw file or a block device.
package disk
