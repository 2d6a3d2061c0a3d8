// Package filesystem mounts the file systems on block devices whose contents are not trusted. A file system is mounted
// without a place first, and gets one when all others that are wanted are mounted, too: what fails leaves nothing behind.
package filesystem
