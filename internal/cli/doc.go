// Package cli is the command line of vhdxfs: arguments and signals in, messages and exit status out.
//
//	vhdxfs [-f] [-o LIST] IMAGE MOUNTPOINT   mounts an image, in the background unless -f is given
//	vhdxfs info|check|map IMAGE              looks at an image
//	vhdxfs create --size SIZE IMAGE          makes one
//	vhdxfs convert|flatten INPUT OUTPUT      copies a disk
//	vhdxfs compare|diff A B, chain IMAGE     tells what differs, and which image is the parent of which
//	mount.vhdx, umount.fuse.vhdxfs ...       what mount(8) and umount(8) call, by these names
//
// A mount in the background is served by a second process of the same program. It opens, mounts and says
// over a pipe that disk.raw can be read; only then does the first process end, with status 0. Otherwise the
// first ends with the status of the second, which has written the reason to the standard error of both.
package cli
