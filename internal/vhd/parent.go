package vhd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
)

const (
	maxLayers = 256
	maxTries  = 4 * maxLayers // files opened on the way; see package vhdx
	maxNames  = 1 << 16       // in a directory that is looked through for a name that differs in case
)

// openParent finds and opens the parent of l, the last layer of the chain so far, if it has one.
func (op *opener) openParent(l *layer) error {
	op.chain = append(op.chain, l)
	defer l.leaveHomes()
	if l.footer.diskType != typeDifferencing {
		return nil
	}
	off := int64(l.footer.dataOffset) // #nosec G115 -- inside the file, readHeader has seen to it
	if len(op.chain) == maxLayers {
		return corrupt("dynamic disk header", off, "the chain has more than %d images", maxLayers)
	}
	names, err := l.parentNames()
	if err != nil {
		return err
	}
	var why []error
	try := func(open func() (*layer, error)) (done bool) {
		if op.tries++; op.tries > maxTries {
			why = append(why, fmt.Errorf("%d files were tried as parents already", maxTries))
			return true
		}
		p, err := open()
		if err == nil {
			if err = op.accept(l, p); err == nil {
				return true
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			why = append(why, err)
		}
		return false
	}
	if level := len(op.chain) - 1; level < len(op.o.Parents) {
		try(func() (*layer, error) { return op.openNamed(op.o.Parents[level]) })
	} else {
		op.search(l, names, try)
	}
	switch {
	case l.parent != nil:
		return nil
	case len(why) > 0:
		return corrupt("dynamic disk header", off, "the parent cannot be used: %w; -o parent=FILE names another one", why[0])
	}
	l.missing = "unknown"
	if len(names) > 0 {
		l.missing = names[0]
	}
	if op.o.MissingParent {
		return nil
	}
	return corrupt("dynamic disk header", off, "parent %s not found; name its directory with -o parent_dir=DIR, or the file with -o parent=FILE", quoted(l.missing))
}

// quoted returns a name from an image without control characters.
func quoted(s string) string {
	if q := fmt.Sprintf("%q", s); q != `"`+s+`"` {
		return q
	}
	return s
}

// parentNames returns the paths that the image has for its parent, relative ones as they are, of others the last element.
func (l *layer) parentNames() (names []string, err error) {
	add := func(name string) {
		if name = strings.TrimPrefix(name, "./"); name != "" && !slices.Contains(names, name) && !strings.ContainsRune(name, 0) {
			names = append(names, name)
		}
	}
	base := func(path string) string { return path[strings.LastIndexAny(path, "/:")+1:] }
	paths := make(map[string]string)
	for _, e := range l.head.locators {
		kind := string(e.code[:])
		if kind != locatorRelative && kind != locatorAbsolute || paths[kind] != "" {
			continue
		}
		if e.length > maxLocator || e.dataFileOffset > uint64(l.size) || int64(e.length) > l.size-int64(e.dataFileOffset) { // #nosec G115 -- not larger than the file
			return nil, corrupt("parent locator", int64(l.footer.dataOffset), "a path of the parent lies outside the file") // #nosec G115 -- inside the file, readHeader has seen to it
		}
		b := make([]byte, e.length)
		if err := l.read(b, int64(e.dataFileOffset), "parent locator"); err != nil { // #nosec G115 -- not larger than the file
			return nil, err
		}
		paths[kind] = decodePath(b)
	}
	if rel := paths[locatorRelative]; !strings.HasPrefix(rel, "/") && !strings.Contains(rel, ":") {
		add(rel)
	}
	add(base(paths[locatorRelative]))
	add(base(paths[locatorAbsolute]))
	add(base(strings.ReplaceAll(l.head.parentName, `\`, "/")))
	return names, nil
}

// search tries the names below the directories of the image, and below those that the user allows. Where none fits, names
// follow that differ in case alone.
func (op *opener) search(l *layer, names []string, try func(open func() (*layer, error)) bool) {
	directories := slices.Clone(l.homes)
	for _, dir := range op.o.ParentDirs {
		if d, err := safefile.OpenDir(dir); err == nil { // else there is no file in it
			defer d.Close()
			directories = append(directories, d)
		}
	}
	for _, exact := range []bool{true, false} {
		for _, name := range names {
			for _, d := range directories {
				rel := name
				if !exact {
					if rel = sameName(d, name); rel == "" {
						continue
					}
				}
				if try(func() (*layer, error) { return op.openBeneath(d, rel) }) {
					return
				}
			}
		}
	}
}

// sameName returns the name of a file in the directory that differs from name in case alone, "" where there is none.
func sameName(d *safefile.Dir, name string) string {
	names, err := d.Names(maxNames)
	if err != nil {
		return ""
	}
	slices.Sort(names)
	for _, n := range names {
		if n != name && strings.EqualFold(n, name) {
			return n
		}
	}
	return ""
}

// openBeneath opens the file at a path that does not lead out of the directory.
func (op *opener) openBeneath(in *safefile.Dir, rel string) (*layer, error) {
	f, err := in.Open(rel, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	d, err := in.OpenDir(filepath.Dir(rel))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return op.layer(f, in.Join(rel), d, filepath.Base(rel))
}

// openNamed opens the file that the user has named.
func (op *opener) openNamed(path string) (*layer, error) {
	d, name, err := safefile.Split(path)
	if err != nil {
		return nil, err
	}
	f, err := d.Follow(name, path, os.O_RDONLY)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return op.layer(f, path, d, name)
}

// accept makes p the parent of l, with its own parents, if it is the right one.
func (op *opener) accept(l, p *layer) error {
	if p.footer.id != l.head.parentID && !op.o.AnyParent {
		return errors.Join(fmt.Errorf("%s is another disk (unique ID %s, not %s)", p.path, p.footer.id, l.head.parentID), p.close())
	}
	chain := len(op.chain)
	if err := op.openParent(p); err != nil {
		op.chain = op.chain[:chain]
		return errors.Join(err, p.close())
	}
	l.parent = p
	return nil
}
