// Package cluster tests images on a storage that two hosts use: a real GlusterFS of three servers, or NFS or SMB. Each server and
// each host is a network namespace of this machine.
//
// make test-cluster runs it on GlusterFS; that needs root, iproute2, xfsprogs, glusterfs-server and glusterfs-client. The flag
// -storage chooses another storage, which needs a kernel that has it: make test-vm does so in a virtual machine. Elsewhere the tests
// skip.
package cluster
