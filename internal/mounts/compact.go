package mounts

import "github.com/vhdxfs/vhdxfs/vhdx"

// The extended attribute user.vhdx.compact of both nodes is how a mount is told to compact its image: to set it to one
// of these words begins or ends a compaction, which goes on in the background, and to read it tells how far it is, as
// the JSON of a Compaction. Only root and the owner of the process may set it. It is not there before the first one.
const (
	CompactXAttr = "compact"

	CompactStart     = "start"
	CompactKeepZeros = "start keep-zeros" // without looking for blocks that hold nothing but zeros
	CompactStop      = "stop"
)

// A Compaction is how far one is that goes on, or went on last.
type Compaction = Job[vhdx.CompactResult]

// TellCompaction has the mount at mountPoint begin or stop a compaction: word is one of the words above. The error
// matches unix.EBUSY while one is running, unix.EROFS where the mount is read-only, and unix.EOPNOTSUPP where it is one
// of an older program.
func TellCompaction(mountPoint, word string) error {
	return tell(mountPoint, CompactXAttr, []byte(word))
}

// AskCompaction returns how far the compaction of the mount at mountPoint is.
func AskCompaction(mountPoint string) (*Compaction, error) {
	return askState[Compaction](mountPoint, CompactXAttr)
}
