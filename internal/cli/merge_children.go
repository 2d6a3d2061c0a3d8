package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx"
)

// A childImage is an image and the one of some files that is its parent.
type childImage struct {
	path, parent string
	same         bool // it shows the same disk as its parent, as it does after it was merged
}

// childrenOf looks in the directories of the files for further images whose parent is one of them. It finds those that fit,
// and reads of each no more than it takes, whether others use it or not. Children elsewhere remain unknown.
func childrenOf(files []string, o vhdx.Options) ([]childImage, error) {
	var directories []string
	for _, f := range files {
		dirs := []string{filepath.Dir(f)}
		if real, err := filepath.EvalSymlinks(f); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
		for _, dir := range dirs {
			if !containsFile(directories, dir) {
				directories = append(directories, dir)
			}
		}
	}
	images, err := imagesIn(directories)
	if err != nil {
		return nil, err
	}
	o.Parents, o.Lock = nil, vhdx.LockOff
	var guids []uuid.UUID // of the files; one that cannot be read is no parent of any
	for _, f := range files {
		if k, err := vhdx.ParentLink(f, o); err == nil {
			guids = append(guids, k.DataWriteGUID)
		}
	}
	var children []childImage
	for _, image := range images {
		if containsFile(files, image) {
			continue
		}
		k, err := vhdx.LinkTo(guids, image, o)
		if err != nil || k.State != vhdx.Linked {
			continue // no image, or no child of another
		}
		for _, f := range files {
			if sameFile(k.Parent.Path, f) {
				children = append(children, childImage{image, f, k.DataWriteGUID == k.Parent.DataWriteGUID})
				break
			}
		}
	}
	return children, nil
}

// childrenBeside returns the images in the directory of the one at path that are its children.
func childrenBeside(path string, o vhdx.Options) ([]string, error) {
	children, err := childrenOf([]string{path}, o)
	var paths []string
	for _, c := range children {
		paths = append(paths, c.path)
	}
	return paths, err
}

// leftOver returns those children of the files that were merged and left behind: they are not needed any more, as those are on which
// other images are based.
func leftOver(files []string, o vhdx.Options) (names []string) {
	children, err := childrenOf(files, o)
	if err != nil {
		return nil
	}
	for _, c := range children {
		if based, err := childrenBeside(c.path, o); c.same && err == nil && len(based) == 0 {
			names = append(names, c.path)
		}
	}
	return names
}

// leftOverNote is what to add to a message that the files cannot be changed because of their children.
func leftOverNote(files []string, o vhdx.Options) string {
	names := leftOver(files, o)
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%s shows the same disk, as after a merge, and can be removed)", strings.Join(names, ", "))
}

// sameFile reports whether two names are those of one file.
func sameFile(a, b string) bool {
	sa, aerr := os.Stat(a)
	sb, berr := os.Stat(b)
	return aerr == nil && berr == nil && os.SameFile(sa, sb)
}

func containsFile(files []string, path string) bool {
	return slices.ContainsFunc(files, func(f string) bool { return sameFile(f, path) })
}
