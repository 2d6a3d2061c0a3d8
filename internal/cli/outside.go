package cli

import (
	"fmt"
	"io"
	"path/filepath"
)

// warnOutside says what whoever made child has to do from now on, if its parent is not in its folder or below: nobody looks
// for it elsewhere unless told.
func warnOutside(w io.Writer, child, parent string) {
	if isBelow(filepath.Dir(child), parent) {
		return
	}
	dir := filepath.Dir(parent)
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	fmt.Fprintf(w, "vhdxfs: warning: the parent is not in the folder of %s, so it has to be named whenever the child is used, with -o parent_dir=%s; "+
		"and nothing keeps the parent from being written, which would make the child useless\n", printable(child), printable(dir))
}

// isBelow reports whether the file at path is in the folder, or below it: by the names, or without symbolic links.
func isBelow(folder, path string) bool {
	local := func(folder, path string) bool {
		folder, err := filepath.Abs(folder)
		if err != nil {
			return false
		}
		if path, err = filepath.Abs(path); err != nil {
			return false
		}
		rel, err := filepath.Rel(folder, path)
		return err == nil && filepath.IsLocal(rel)
	}
	if local(folder, path) {
		return true
	}
	realFolder, err := filepath.EvalSymlinks(folder)
	if err != nil {
		return false
	}
	realPath, err := filepath.EvalSymlinks(path)
	return err == nil && local(realFolder, realPath)
}
