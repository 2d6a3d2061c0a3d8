// Package sandbox takes rights away from this process, for good, so that a program that was taken over by what it has
// read can reach little: files and network by Landlock, privileges by capabilities and no_new_privs, the system calls by
// seccomp. All threads are confined, those that there are and those to come.
package sandbox
