// Package mounts is the client half of a mount: it finds mounts of the program in the mount table, asks what they are,
// tells them what to do, and unmounts them. Package fs serves them.
//
// A mount tells of itself by the extended attributes user.vhdx.NAME of its directory and of disk.raw.
package mounts
