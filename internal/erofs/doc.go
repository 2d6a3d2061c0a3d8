// Package erofs makes the kernel read a disk by itself. It writes the metadata of an EROFS file system that has one file,
// whose chunks lie in other files, the devices, and mounts it without a name. The kernel then reads the file as the map
// says, and needs no program for that.
//
//	offset        contents
//	0             nothing
//	1024          superblock, 128 bytes
//	1152          a slot of 128 bytes for each device
//	dirOffset     the root directory, one block
//	metaOffset    root inode at +32, the file's inode at +64
//	metaOffset    +128: the table, 8 bytes for each chunk: {0, device, first block in it}; a hole has no block
//
// All chunks have the same size, and each is a hole or lies in one piece in one device. Block numbers have 32 bits. They
// count blocks of 512 or 4096 bytes, so they reach 2 or 16 TiB into a device. All numbers are little-endian.
//
// A [Geometry] and a stream of [Run] values describe the file. Both may come from a process that is not trusted: nothing
// else of the metadata comes from there, and each number is checked.
package erofs
