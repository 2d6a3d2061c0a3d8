package vhdx

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"
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
	if im.top.parent == nil {
		return nil, optionsError{fmt.Errorf("%s is no differencing image; there is nothing to merge it into", path)}
	}
	depth := 1
	if o.Into != "" {
		if depth, err = im.depthOf(o.Into); err != nil {
			return nil, err
		}
	}
	var above *layer
	for l, i := im.top, 0; i <= depth; above, l, i = l, l.parent, i+1 {
		f, err := openFile(l.path, os.O_RDWR)
		if err != nil {
			return nil, fmt.Errorf("all images that take part in a merge are changed: %w", err)
		}
		_ = f.Close() // nothing was written
		if above != nil && l.geo.diskSize > above.geo.diskSize {
			return nil, optionsError{fmt.Errorf("the disk of %s has %d bytes, that of its child %s only %d; flatten makes a new image of what the child shows",
				l.path, l.geo.diskSize, above.path, above.geo.diskSize)}
		}
		if err := l.canResize(im.Size()); i == depth && err != nil {
			return nil, optionsError{fmt.Errorf("%s: %w", l.path, err)}
		}
		if l.headers.header().DataWriteGUID == uuid.Nil {
			return nil, fmt.Errorf("%s has no DataWriteGuid by which it could be known; flatten makes a new image", l.path)
		}
		layers = append(layers, l.path)
	}
	result := layers[depth]
	if o.KeepName && filepath.Dir(realPath(result)) != filepath.Dir(realPath(path)) {
		return nil, optionsError{fmt.Errorf("%s cannot take the name of %s, which is in another folder", result, path)}
	}
	return layers, nil
}

// depthOf returns how far below the image the file at path is in its chain.
func (im *Image) depthOf(path string) (int, error) {
	f, err := openFile(path, os.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for l, depth := im.top.parent, 1; l != nil; l, depth = l.parent, depth+1 {
		if sameFile(l.file, f) {
			return depth, nil
		}
	}
	return 0, optionsError{fmt.Errorf("%s is no parent of %s", path, im.top.path)}
}

// checkRun makes sure that the images are those of the plan: they were not locked meanwhile.
func checkRun(run []*Image, layers []string) error {
	for i, im := range run {
		if im.top.path != layers[i] {
			return fmt.Errorf("%s: the chain was changed at this moment; try it again", layers[0])
		}
	}
	if len(run) != len(layers) {
		return fmt.Errorf("%s: the chain was changed at this moment; try it again", layers[0])
	}
	return nil
}
