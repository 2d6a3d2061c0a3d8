package mountoption

import (
	"errors"
	"fmt"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func oneOf(v string, allowed ...string) error {
	if slices.Contains(allowed, v) {
		return nil
	}
	return fmt.Errorf("must be %s or %s", strings.Join(allowed[:len(allowed)-1], ", "), allowed[len(allowed)-1])
}

func appendPath(list *[]string, path string) error {
	path, err := filepath.Abs(path)
	*list = append(*list, path)
	return err
}

// parseID reads a number, or a name that find knows.
func parseID(p **uint32, v string, find func(name string) (string, error)) error {
	number := v
	if _, err := strconv.Atoi(v); err != nil {
		if number, err = find(v); err != nil {
			return err
		}
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || n == 1<<32-1 { // the highest means "none" to the system
		return fmt.Errorf("give a name, or a number from 0 to %d", uint32(1<<32-2))
	}
	id := uint32(n)
	*p = &id
	return nil
}

func userID(name string) (string, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return "", errors.New("no such user")
	}
	return u.Uid, nil
}

func groupID(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return "", errors.New("no such group")
	}
	return g.Gid, nil
}

func parseMode(p **uint32, v string) error {
	n, err := strconv.ParseUint(v, 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Errorf("give an octal number from 0 to 777")
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
		return fmt.Errorf("give whole seconds, such as 5; at most %d", maxSeconds)
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
	if err != nil || n < NeverKill || n > -NeverKill {
		return fmt.Errorf("give keep or a number from %d to %d", NeverKill, -NeverKill)
	}
	*p = &n
	return nil
}

// maxPartition bounds the number of a partition; the kernel has no higher ones, either.
const maxPartition = 65535

func parsePartition(p *int, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > maxPartition {
		return fmt.Errorf("give the number of a partition, such as 1")
	}
	*p = n
	return nil
}

// parseMetrics reads the value of the option metrics and returns the path of the socket.
func parseMetrics(v string) (string, error) {
	path, ok := strings.CutPrefix(v, "unix:")
	if !ok || path == "" {
		return "", errors.New("give unix: and the path of a socket, such as unix:/run/vhdxfs/metrics.sock")
	}
	path, err := filepath.Abs(path)
	// The kernel's limit, with a zero byte behind the path.
	if limit := len(unix.RawSockaddrUnix{}.Path) - 1; err == nil && len(path) > limit {
		err = fmt.Errorf("the path of a socket has at most %d bytes; %s has %d", limit, path, len(path))
	}
	if name := filepath.Base(path); err == nil && len(name) > maxSocketName {
		err = fmt.Errorf("the name of a socket has at most %d bytes; %s has %d", maxSocketName, name, len(name))
	}
	return path, err
}

// maxSocketName leaves room for a path through the descriptor of the directory, by which the socket is made.
const maxSocketName = 80
