package vhdx

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	sizes "github.com/vhdxfs/vhdxfs/internal/size"
	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
)

// planMerge returns the paths of the images that take part, from the one at path down to the result. It looks at
// everything that can be known before something is changed.
func planMerge(path string, o MergeOptions) (layers []string, err error) {
	o.Open.Writable = false
	im, err := Open(path, o.Open)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	if im.current().parent() == nil {
		return nil, optionsError{fmt.Errorf("%s has no parent to merge into", path)}
	}
	depth := 1
	if o.Into != "" {
		if depth, err = im.depthOf(o.Into); err != nil {
			return nil, err
		}
	}
	var run []*layer
	for l := im.current(); len(run) <= depth; l = l.parent() {
		f, err := imagefile.Open(l.path, os.O_RDWR)
		if err != nil {
			return nil, fmt.Errorf("a merge changes all of its images: %w", err)
		}
		_ = f.Close() // nothing was written
		if l.headers.header().DataWriteGUID == uuid.Nil {
			return nil, fmt.Errorf("%s has no DataWriteGuid to identify it; use vhdxfs flatten instead", l.path)
		}
		run, layers = append(run, l), append(layers, l.path)
	}
	if err := checkSizes(run); err != nil {
		return nil, err
	}
	result := layers[depth]
	if o.KeepName && filepath.Dir(realPath(result)) != filepath.Dir(realPath(path)) {
		return nil, optionsError{fmt.Errorf("%s cannot be renamed to %s, which is in another directory", result, path)}
	}
	return layers, nil
}

// checkSizes makes sure that the last of the layers can get the sizes of the others, one after the other: what its own
// parent holds behind its end must not come to light when it becomes larger.
func checkSizes(run []*layer) error {
	into := run[len(run)-1]
	size := into.geo.DiskSize
	for i := len(run) - 2; i >= 0; i-- {
		next := run[i].geo.DiskSize
		if next > size && into.parent() != nil && into.parent().geo.DiskSize > size {
			return optionsError{fmt.Errorf("%s: %w: it would have to grow from %s to the %s of %s, and its parent is larger; use vhdxfs flatten instead",
				into.path, ErrSize, sizes.Exact(size), sizes.Exact(next), run[i].path)}
		}
		size = next
	}
	return nil
}

// depthOf returns how far below the image the file at path is in its chain.
func (im *Image) depthOf(path string) (int, error) {
	f, err := imagefile.Open(path, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for l, depth := im.current().parent(), 1; l != nil; l, depth = l.parent(), depth+1 {
		if imagefile.Same(l.file, f) {
			return depth, nil
		}
	}
	return 0, optionsError{fmt.Errorf("%s is not a parent of %s", path, im.current().path)}
}

// checkRun makes sure that the images are those of the plan: they were not locked meanwhile.
func checkRun(run []*Image, layers []string) error {
	for i, im := range run {
		if im.current().path != layers[i] {
			return fmt.Errorf("%s: the chain has just changed; try again", layers[0])
		}
	}
	if len(run) != len(layers) {
		return fmt.Errorf("%s: the chain has just changed; try again", layers[0])
	}
	return nil
}

// mergeDryRun says what a merge of the layers would do. How many bytes it would write is told by the blocks that are there,
// and may be less.
func mergeDryRun(path string, layers []string, o MergeOptions) (r *MergeResult, err error) {
	im, err := Open(path, o.Open)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	last := len(layers) - 1
	r = &MergeResult{Into: layers[last], Path: layers[last], DryRun: true}
	if o.KeepName {
		r.Path = path
	}
	l := im.current()
	for _, name := range layers[:last] {
		r.Merged = append([]string{name}, r.Merged...)
		r.Data += l.allocated()
		l = l.parent()
	}
	return r, nil
}
