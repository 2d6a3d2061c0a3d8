// Package safefile opens and changes files in directories that others can write. A name there can become another file, a
// symbolic link, a FIFO or a device between two calls, and so can each directory on the way. So a name is used once: to get
// a descriptor that reads and writes nothing (O_PATH). What the file is, and all that is done to it, goes by descriptors;
// names are given and removed in a directory that is open.
package safefile
