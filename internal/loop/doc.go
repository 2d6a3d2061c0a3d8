// Package loop finds loop devices, attaches them to files and detaches them, and tells what uses one.
//
// What there is, it reads from /sys/block and the mount table, as any user may. It opens no device and looks at no
// file behind one: where the program behind a FUSE file hangs, that would hang too. To attach and detach it calls
// losetup(8) and partx(8) of util-linux, which takes the right to write to /dev/loop-control.
package loop
