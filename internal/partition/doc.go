// Package partition knows partition tables, GPT and MBR: where a partition is, and how far what is on a disk reaches, by
// its partitions and the file systems that are known; and it moves the backup of a GPT to the end of a disk that has
// another size now. From a disk with any content it reads some MiB at most.
package partition
