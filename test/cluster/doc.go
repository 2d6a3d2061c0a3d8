// Package cluster tests images on a real GlusterFS: three servers and two clients, each in a network namespace of its own, on this
// machine. make test-cluster runs it; elsewhere its tests skip. It needs root, iproute2, xfsprogs, glusterfs-server and
// glusterfs-client.
package cluster
