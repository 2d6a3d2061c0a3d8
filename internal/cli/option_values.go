package cli

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
)

func oneOf(v string, allowed ...string) error {
	if slices.Contains(allowed, v) {
		return nil
	}
	return fmt.Errorf("it can be %s or %s", strings.Join(allowed[:len(allowed)-1], ", "), allowed[len(allowed)-1])
}

// absPath makes a path absolute, since the program leaves the working directory when it is mounted.
func absPath(path string) (string, error) { return filepath.Abs(path) }

func appendPath(list *[]string, path string) error {
	path, err := absPath(path)
	*list = append(*list, path)
	return err
}

func parseID(p **uint32, v string) error {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n == 1<<32-1 { // the highest means "none" to the system
		return fmt.Errorf("it is a number from 0 to %d", uint32(1<<32-2))
	}
	id := uint32(n)
	*p = &id
	return nil
}

func parseMode(p **uint32, v string) error {
	n, err := strconv.ParseUint(v, 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Errorf("it is an octal number from 0 to 777")
	}
	mode := uint32(n)
	*p = &mode
	return nil
}

// maxSeconds bounds the times in options: a year.
const maxSeconds = 365 * 24 * 60 * 60

func parseSeconds(d *time.Duration, v string) error {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n > maxSeconds {
		return fmt.Errorf("it is a number of seconds from 0 to %d", maxSeconds)
	}
	*d = time.Duration(n) * time.Second
	return nil
}

func parseOOMScore(p **int, v string) error {
	if v == "keep" {
		*p = nil
		return nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < neverKill || n > -neverKill {
		return fmt.Errorf("it is keep or a number from %d to %d", neverKill, -neverKill)
	}
	*p = &n
	return nil
}

// parseSize reads a number of bytes, with a unit or without. Units are powers of 1024: K, M, G, T, P, also
// written KiB or KB.
func parseSize(v string) (int64, error) {
	n, err := units.RAMInBytes(v)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("it is a size above zero in bytes, or with a unit, such as 64M or 10GiB")
	}
	return n, nil
}
