package cli

import (
	"path/filepath"

	"github.com/spf13/cobra"
)

// warnOutside warns if the parent is not in the directory of the child or below: it is searched elsewhere only on request.
func warnOutside(cmd *cobra.Command, child, parent string) {
	if isBelow(filepath.Dir(child), parent) {
		return
	}
	dir := filepath.Dir(parent)
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	warn(cmd, "%s: the parent is in another directory; whenever you use the child, give -o parent_dir=%s. Do not write to the parent: "+
		"the child would become unusable", printable(child), printable(dir))
}

// isBelow reports whether the file at path is in the directory, or below it: by the names, or without symbolic links.
func isBelow(directory, path string) bool {
	local := func(directory, path string) bool {
		directory, err := filepath.Abs(directory)
		if err != nil {
			return false
		}
		if path, err = filepath.Abs(path); err != nil {
			return false
		}
		rel, err := filepath.Rel(directory, path)
		return err == nil && filepath.IsLocal(rel)
	}
	if local(directory, path) {
		return true
	}
	realDir, err := filepath.EvalSymlinks(directory)
	if err != nil {
		return false
	}
	realPath, err := filepath.EvalSymlinks(path)
	return err == nil && local(realDir, realPath)
}
