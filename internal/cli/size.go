package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	"github.com/vhdxfs/vhdxfs/internal/size"
)

// A sizeWriter writes a number of bytes.
type sizeWriter func(n int64) string

// sizesOf returns how a command writes sizes: for people, or with --bytes exactly.
func sizesOf(cmd *cobra.Command) sizeWriter {
	if isSet(cmd, "bytes") {
		return func(n int64) string { return strconv.FormatInt(n, 10) + " B" }
	}
	return size.Text
}

// A sizeFlag is a flag for a size in bytes; 0 is one that was not given.
type sizeFlag int64

func (s *sizeFlag) Set(v string) error {
	n, err := size.Parse(v)
	*s = sizeFlag(n)
	return err
}

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return size.Exact(int64(*s))
}

func (s *sizeFlag) Type() string { return "SIZE" }
