package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/vhdxfs/vhdxfs/internal/mounts"
)

// entries is what the directory lists. The offset of an entry is its place in the list, from 1.
var entries = []fuse.DirEntry{
	{Name: ".", Ino: rootNode, Mode: syscall.S_IFDIR, Off: 1},
	{Name: "..", Ino: rootNode, Mode: syscall.S_IFDIR, Off: 2},
	{Name: mounts.FileName, Ino: diskNode, Mode: syscall.S_IFREG, Off: 3},
}

func (f *fileSystem) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	switch {
	case !f.access(&in.InHeader):
		return fuse.EACCES
	case in.NodeId != rootNode:
		return fuse.ENOTDIR
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

func (f *fileSystem) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	for _, e := range entriesFrom(in.Offset) {
		if !out.AddDirEntry(e) {
			break
		}
	}
	return fuse.OK
}

func (f *fileSystem) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	for _, e := range entriesFrom(in.Offset) {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			break
		}
		if e.Ino == diskNode { // "." and ".." are not to be looked up: their entry stays zero
			f.fillEntry(entry)
		}
	}
	return fuse.OK
}

func entriesFrom(off uint64) []fuse.DirEntry {
	return entries[min(off, uint64(len(entries))):]
}
