package vhdx

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
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
	if !l.geo.HasParent || l.orphan {
		return nil
	}
	if l.meta.locator == nil { // to salvage, and what was wrong has been written down
		return l.parentError(ondisk.RuleNoParentLocator, "the parent locator is damaged, so the parent is not known")
	}
	if len(o.chain) == maxLayers {
		return l.parentError(ondisk.RuleChainEndless, "the chain has more than %d images", maxLayers)
	}
	var tried []triedParent
	for c := range o.search(l) {
		err := c.refused
		if err == nil {
			err = o.tryParent(l, c)
		}
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrLocked) || exhausted(err) { // nothing is wrong with the image
			return fmt.Errorf("parent: %w", err)
		}
		tried = append(tried, triedParent{c, err})
	}
	why := &parentSearchError{tried}
	if o.MissingParent && why.notFound() {
		l.orphan, l.unfound = true, why
		return nil
	}
	return l.parentError(why.rule(), "%w", why)
}

// exhausted reports whether err says that this process, or this host, has no descriptors or memory left.
func exhausted(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

func (l *layer) parentError(r ondisk.Rule, format string, args ...any) error {
	return ondisk.Corrupt(r, "parent locator", l.meta.locatorOffset, format, args...)
}

// A candidate is a file that may be the parent.
type candidate struct {
	dir      *safefile.Dir // below which it has to be; nil for one that the mounter has named
	rel      string        // its path in that
	path     string        // all of it, for messages
	origin   string        // what named it
	explicit bool          // the mounter did, for this very layer
	similar  bool          // its name differs in case, so that only its identity shows that it is meant
	refused  error         // why it may not even be looked at

	missing bool // there is no such file; set by the code that has tried it
}

// errOutside says why a path of an image is not followed.
var errOutside = errors.New("outside the directory of the image and the directories of parent_dir=")

// search returns where the parent of l may be, in the order in which the places are tried. Where none of the names fits,
// such follow as differ in case alone, which Windows does not mind.
func (o *opener) search(l *layer) iter.Seq[*candidate] {
	return func(yield func(*candidate) bool) {
		list, release := o.candidates(l)
		defer release()
		for _, c := range list {
			if !yield(c) || c.explicit {
				return // of an explicit one the mounter has said that it is the parent
			}
		}
		for _, c := range list {
			if !c.missing || c.refused != nil {
				continue
			}
			for _, rel := range similarNames(c.dir, c.rel) {
				if !yield(&candidate{dir: c.dir, rel: rel, path: c.dir.Join(rel), origin: c.origin, similar: true}) {
					return
				}
			}
		}
	}
}

// candidates returns the places that l and the mounter name. A path that the image gives is taken only as far as it stays
// in the directory of the image or in one of those that the mounter allows: an image from elsewhere must not choose which files
// of this machine are shown. Where the image is opened by a symbolic link, both the directory of the link and that of the file
// are its own. The directories stay open until release is called.
func (o *opener) candidates(l *layer) (list []*candidate, release func()) {
	release = func() {}
	if level := len(o.chain) - 1; level < len(o.Parents) {
		return []*candidate{{path: o.Parents[level], origin: "parent= option", explicit: true}}, release
	}
	directories := slices.Clone(l.homes)
	for _, dir := range o.ParentDirs {
		if d, err := safefile.OpenDir(dir); err == nil { // else there is no file in it
			directories = append(directories, d)
		}
	}
	opened := directories[len(l.homes):]
	release = func() {
		for _, d := range opened {
			_ = d.Close()
		}
	}
	add := func(dir *safefile.Dir, path, origin string) {
		if !filepath.IsAbs(path) {
			path = dir.Join(path)
		}
		if slices.ContainsFunc(list, func(c *candidate) bool { return c.path == path }) {
			return
		}
		c := &candidate{path: path, origin: origin}
		if c.dir, c.rel = beneathOne(dir, directories, path); c.dir == nil {
			c.refused = errOutside
		}
		list = append(list, c)
	}
	for _, key := range ondisk.PathKeys {
		value := l.meta.locator.Values[key]
		if value == "" || strings.ContainsRune(value, 0) {
			continue
		}
		path := strings.ReplaceAll(value, `\`, "/")
		base := path[strings.LastIndexAny(path, "/:")+1:]
		if key == ondisk.KeyRelativePath && !strings.HasPrefix(path, "/") && !strings.Contains(path, ":") {
			for _, home := range l.homes {
				add(home, path, key)
			}
		}
		if base == "" || base == "." || base == ".." {
			continue
		}
		for _, home := range l.homes {
			add(home, base, "name in "+key)
		}
		for _, dir := range opened {
			add(dir, base, "parent_dir= option")
		}
		// As this program writes a path of its own into an image; see parentKeys.
		if here, ok := strings.CutPrefix(path, "//?/C:/"); ok && key == ondisk.KeyAbsolutePath && len(opened) > 0 {
			if dir, _ := beneathOne(nil, opened, "/"+here); dir != nil {
				add(dir, "/"+here, key)
			}
		}
	}
	return list, release
}

// beneathOne returns the first of the directories below which path is as it is written, and its path from there. The directory
// in which it was found comes first, if it is not nil.
func beneathOne(first *safefile.Dir, directories []*safefile.Dir, path string) (*safefile.Dir, string) {
	if first != nil {
		directories = append([]*safefile.Dir{first}, directories...)
	}
	for _, d := range directories {
		if rel, err := filepath.Rel(absolute(d.Path()), absolute(path)); err == nil && filepath.IsLocal(rel) {
			return d, rel
		}
	}
	return nil, ""
}

const (
	maxSimilar = 16      // names that differ in case
	maxNames   = 1 << 16 // in a directory that is looked through for them
)

// similarNames returns the paths below d that differ from rel in case alone.
func similarNames(d *safefile.Dir, rel string) []string {
	found := []string{""}
	for _, element := range strings.Split(filepath.Clean(rel), "/") {
		var next []string
		for _, before := range found {
			dir := filepath.Clean(before)
			if element == ".." {
				next = append(next, filepath.Join(dir, element))
				continue
			}
			in, err := d.OpenDir(dir)
			if err != nil {
				continue
			}
			names, err := in.Names(maxNames)
			_ = in.Close()
			if err != nil {
				continue
			}
			slices.Sort(names) // the same order everywhere
			for _, name := range names {
				if strings.EqualFold(name, element) && len(next) < maxSimilar {
					next = append(next, filepath.Join(dir, name))
				}
			}
		}
		found = next
	}
	return found
}

// dirsOf returns the directory of the image at path, and, where that is a symbolic link, also that of the file.
func dirsOf(path string) []string {
	homes := []string{filepath.Dir(path)}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == fs.ModeSymlink {
		homes = append(homes, filepath.Dir(realPath(path)))
	}
	return homes
}

// absolute returns path from the root of the file system. It fails only where there is no working directory,
// and then a path that is not absolute cannot be opened either.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// tryParent opens the candidate as the parent of l, with its own parents.
func (o *opener) tryParent(l *layer, c *candidate) error {
	if o.tries++; o.tries > maxTries {
		return noParent(ondisk.RuleChainEndless, fmt.Errorf("%d files were tried as parents already", maxTries))
	}
	flags, kind := o.next()
	p, err := o.openCandidate(c, flags, kind)
	c.missing = errors.Is(err, fs.ErrNotExist)
	var why *notParentError
	switch {
	case errors.As(err, &why):
		return err
	case err != nil:
		return noParent(ondisk.RuleParentUnreadable, err)
	}
	if err := o.checkCandidate(l, p, c); err != nil {
		return errors.Join(err, p.close())
	}
	chain := len(o.chain)
	if err := o.openParent(p); err != nil {
		o.chain = o.chain[:chain]
		return noParent(ruleOf(err), errors.Join(err, p.close()))
	}
	l.setParent(p)
	return nil
}

// openCandidate opens and locks the file of a candidate that is not refused.
func (o *opener) openCandidate(c *candidate, flags int, kind imagefile.LockKind) (*layer, error) {
	if c.dir == nil {
		return o.openLayer(c.path, flags, kind)
	}
	return o.openBeneath(c.dir, c.rel, c.path, flags, kind)
}

// checkCandidate is checkParent for the file of a candidate. If its name is not the one that the image gives, its identity
// must be right, even if the options allow another.
func (o *opener) checkCandidate(l, p *layer, c *candidate) error {
	if any := o.AnyParent; any && c.similar {
		o.AnyParent = false
		defer func() { o.AnyParent = any }()
	}
	return o.checkParent(l, p)
}

// notInChain returns an error if f is a file that the chain so far is made of.
func (o *opener) notInChain(f File) error {
	for _, c := range o.chain {
		if imagefile.Same(c.file, f) {
			return noParent(ondisk.RuleChainEndless, errors.New("the chain has this file already"))
		}
	}
	return nil
}

// checkParent loads p and checks that it is the parent of l (MS-VHDX 2.6.2.6.3).
func (o *opener) checkParent(l, p *layer) error {
	if err := p.load(); err != nil {
		return noParent(ondisk.RuleParentUnreadable, err)
	}
	if got := p.headers.header().DataWriteGUID; !o.AnyParent && !l.meta.locator.Accepts(got) {
		return noParent(ondisk.RuleParentChanged, fmt.Errorf("it has changed since the child was created, or is another disk (DataWriteGuid %v)", got))
	}
	if p.geo.SectorSize != l.geo.SectorSize {
		return noParent(ondisk.RuleParentSectorSize, fmt.Errorf("its logical sector size is %d, that of the child %d", p.geo.SectorSize, l.geo.SectorSize))
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
