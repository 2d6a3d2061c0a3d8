package mountoption

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Where directories of parents are listed that every command looks through, after those of the option parent_dir.
const parentDirsVariable = "VHDXFS_PARENT_DIRS" // separated by colons

// configFile is the file with settings of this machine; a variable for tests.
var configFile = "/etc/vhdxfs.conf"

// defaultParentDirs returns the directories that the environment and the configuration file list.
func defaultParentDirs() ([]string, error) {
	var dirs []string
	for dir := range strings.SplitSeq(os.Getenv(parentDirsVariable), ":") {
		switch {
		case dir == "":
		case !filepath.IsAbs(dir):
			return nil, usage("%s: %q is not an absolute path", parentDirsVariable, dir)
		default:
			dirs = append(dirs, dir)
		}
	}
	f, err := os.Open(configFile)
	if errors.Is(err, fs.ErrNotExist) {
		return dirs, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	listed, err := readConfig(f)
	return append(dirs, listed...), err
}

// readConfig reads the directories from the configuration file: lines such as "parent_dir = /srv/base". Empty lines, and what
// follows a "#" at the start of a line, mean nothing.
func readConfig(f *os.File) (dirs []string, err error) {
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, _ := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		switch {
		case name != "parent_dir":
			return nil, usage("%s, line %d: unknown setting %q; the only one is parent_dir", f.Name(), n, name)
		case !filepath.IsAbs(value):
			return nil, usage("%s, line %d: parent_dir must be an absolute path", f.Name(), n)
		}
		dirs = append(dirs, value)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return dirs, nil
}
