package vhdx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vhdxfs/internal/ondisk"
	"vhdxfs/vhdx/imagefile"
)

const (
	maxLayers = 256 // bounds a chain. Hyper-V keeps chains far shorter.

	// maxTries bounds the files that are opened on the way. Where every parent has copies under several names and
	// the last one is missing, trying every way through them would take twice the time with each level.
	maxTries = 4 * maxLayers
)

// openParent finds, opens and checks the parent of l, the last layer of the chain so far, if it has one.
func (o *opener) openParent(l *layer) error {
	o.chain = append(o.chain, l)
	if !l.geo.hasParent || l.orphan {
		return nil
	}
	if l.meta.locator == nil { // to salvage, and what was wrong has been written down
		return l.parentError(ondisk.R53, "the parent locator is damaged, so the parent is not known")
	}
	if len(o.chain) == maxLayers {
		return l.parentError(ondisk.R65, "the chain has more than %d images", maxLayers)
	}
	var tried []string
	rule := ondisk.R61
	for _, c := range o.candidates(l) {
		err := c.refused
		if err == nil {
			err = o.tryParent(l, c.path)
		}
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrLocked) { // nothing is wrong with the image
			return fmt.Errorf("parent: %w", err)
		}
		if !errors.Is(err, os.ErrNotExist) && c.refused == nil {
			rule = ruleOf(err)
		}
		tried = append(tried, fmt.Sprintf("%s (%s): %v", c.path, c.origin, err))
		if c.explicit {
			break // the mounter has said which file it is
		}
	}
	return l.parentError(rule, "no parent with the DataWriteGuid %v was found; tried:\n  %s\nname it with -o parent=FILE, or its folder with -o parent_dir=DIR",
		l.meta.locator.linkage, strings.Join(tried, "\n  "))
}

func (l *layer) parentError(r ondisk.Rule, format string, args ...any) error {
	return ondisk.Corrupt(r, "parent locator", l.meta.locatorOffset, format, args...)
}

// A candidate is a file that may be the parent.
type candidate struct {
	path     string
	origin   string // what named it
	explicit bool   // the mounter did, for this very layer
	refused  error  // why it may not even be looked at
}

// candidates returns where the parent of l may be, in the order in which the places are tried. A path that the
// image gives is taken only as far as it stays in the folder of the image or in one of those that the mounter
// allows: an image from elsewhere must not choose which files of this machine are shown. Where the image is opened by a
// symbolic link, both the folder of the link and that of the file are its own.
func (o *opener) candidates(l *layer) []candidate {
	if level := len(o.chain) - 1; level < len(o.Parents) {
		return []candidate{{path: o.Parents[level], origin: "parent= option", explicit: true}}
	}
	homes := foldersOf(l.path)
	var list []candidate
	add := func(dir, path, origin string) {
		path = filepath.Join(dir, path)
		if slices.ContainsFunc(list, func(c candidate) bool { return c.path == path }) {
			return
		}
		c := candidate{path: path, origin: origin}
		if !o.mayHold(homes, path) {
			c.refused = errors.New("it is outside the folder of the image and those given with parent_dir=")
		}
		list = append(list, c)
	}
	for _, key := range pathKeys {
		value := l.meta.locator.values[key]
		if value == "" {
			continue
		}
		path := strings.ReplaceAll(value, `\`, "/")
		base := path[strings.LastIndexAny(path, "/:")+1:]
		if key == keyRelativePath && !strings.HasPrefix(path, "/") && !strings.Contains(path, ":") {
			for _, home := range homes {
				add(home, path, key)
			}
		}
		if base == "" || base == "." || base == ".." {
			continue
		}
		for _, home := range homes {
			add(home, base, "name in "+key)
		}
		for _, dir := range o.ParentDirs {
			add(dir, base, "parent_dir= option")
		}
	}
	return list
}

// foldersOf returns the folder of the image at path, and, where that is a symbolic link, also that of the file.
func foldersOf(path string) []string {
	homes := []string{filepath.Dir(path)}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == fs.ModeSymlink {
		homes = append(homes, filepath.Dir(realPath(path)))
	}
	return homes
}

// mayHold reports whether a parent may be at path, that of an image with the given folders.
func (o *opener) mayHold(homes []string, path string) bool {
	for _, dir := range slices.Concat(homes, o.ParentDirs) {
		if rel, err := filepath.Rel(absolute(dir), absolute(path)); err == nil && filepath.IsLocal(rel) {
			return true
		}
	}
	return false
}

// absolute returns path from the root of the file system. It fails only where there is no working directory,
// and then a path that is not absolute cannot be opened either.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// tryParent opens the image at path as the parent of l, with its own parents.
func (o *opener) tryParent(l *layer, path string) error {
	if o.tries++; o.tries > maxTries {
		return noParent(ondisk.R65, fmt.Errorf("%d files were tried as parents already", maxTries))
	}
	p, err := o.openNext(path)
	var why *notParentError
	switch {
	case errors.As(err, &why):
		return err
	case err != nil:
		return noParent(ondisk.R62, err)
	}
	if err := o.checkParent(l, p); err != nil {
		return errors.Join(err, p.close())
	}
	chain := len(o.chain)
	if err := o.openParent(p); err != nil {
		o.chain = o.chain[:chain]
		return noParent(ruleOf(err), errors.Join(err, p.close()))
	}
	l.parent = p
	return nil
}

// notInChain returns an error if f is a file that the chain so far is made of.
func (o *opener) notInChain(f File) error {
	for _, c := range o.chain {
		if imagefile.Same(c.file, f) {
			return noParent(ondisk.R65, errors.New("the chain has this file already"))
		}
	}
	return nil
}

// checkParent loads p and checks that it is the parent of l (MS-VHDX 2.6.2.6.3).
func (o *opener) checkParent(l, p *layer) error {
	if err := p.load(); err != nil {
		return noParent(ondisk.R62, err)
	}
	if got := p.headers.header().DataWriteGUID; !o.AnyParent && !l.meta.locator.accepts(got) {
		return noParent(ondisk.R63, fmt.Errorf("its DataWriteGuid is %v: it was changed since the child was made, or is another disk", got))
	}
	if p.geo.sectorSize != l.geo.sectorSize {
		return noParent(ondisk.R64, fmt.Errorf("its logical sectors have %d bytes, those of the child %d", p.geo.sectorSize, l.geo.sectorSize))
	}
	return nil
}

// noParent says that a file is not the parent, and which rule it would break.
func noParent(r ondisk.Rule, err error) error {
	return &notParentError{rule: r, err: err}
}

// A notParentError keeps the rule apart from the text: the text becomes part of a list, under one rule.
type notParentError struct {
	rule ondisk.Rule
	err  error
}

func (e *notParentError) Error() string { return e.err.Error() }
func (e *notParentError) Unwrap() error { return e.err }
