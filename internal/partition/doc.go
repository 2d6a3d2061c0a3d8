// Package partition tells how far what is on a disk reaches, by partition tables and the file systems that it knows,
// and moves the backup of a GPT to the end of a disk that has another size now. Whatever bytes a disk holds, it reads
// 1 MiB of them at most.
package partition
