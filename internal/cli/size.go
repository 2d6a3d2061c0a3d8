package cli

import (
	"strconv"

	"github.com/docker/go-units"
)

// humanSize writes a number of bytes exactly, in the largest unit of which it is a multiple.
func humanSize(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for i < len(units)-1 && n != 0 && n%1024 == 0 {
		n /= 1024
		i++
	}
	return strconv.FormatInt(n, 10) + " " + units[i]
}

// roughSize writes a number of bytes for people, to four digits.
func roughSize(n int64) string { return units.BytesSize(float64(n)) }

// A sizeFlag is a flag for a size in bytes; 0 is one that was not given.
type sizeFlag int64

func (s *sizeFlag) Set(v string) error {
	n, err := parseSize(v)
	*s = sizeFlag(n)
	return err
}

func (s *sizeFlag) String() string {
	if *s == 0 {
		return ""
	}
	return humanSize(int64(*s))
}

func (s *sizeFlag) Type() string { return "SIZE" }
