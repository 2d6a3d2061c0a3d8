package size

import (
	"fmt"
	"strings"

	"github.com/docker/go-units"
)

// Parse reads a number of bytes above zero, with a unit or without. Units are powers of 1024: K, M, G, T, P, also
// written Ki, KiB or KB.
func Parse(v string) (int64, error) {
	word := v
	if strings.HasSuffix(strings.ToLower(v), "i") {
		word += "B"
	}
	n, err := units.RAMInBytes(word)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("invalid size %q: give a positive size such as 64M or 10G", v)
	}
	return n, nil
}
