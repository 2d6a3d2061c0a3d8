package vhdx

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vhdxfs/vhdxfs/internal/safefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A triedParent is a file that is not the parent, and why.
type triedParent struct {
	*candidate
	err error
}

// A parentSearchError says that no parent was found. Its text is one sentence about the file that comes nearest, and what
// to do; places has the rest.
type parentSearchError struct{ tried []triedParent }

// nearest returns the try that tells most: that ended the search, of a file that is there, of one that leads outside, or
// else the first.
func (e *parentSearchError) nearest() triedParent {
	best, value := triedParent{candidate: &candidate{missing: true}}, -1
	for _, t := range e.tried {
		v := 0
		switch {
		case t.refused != nil, errors.Is(t.err, safefile.ErrOutside):
			v = 1
		case t.missing:
		case ruleOf(t.err) == ondisk.RuleChainEndless:
			v = 3
		default:
			v = 2
		}
		if v > value {
			best, value = t, v
		}
	}
	return best
}

// rule returns the rule that is broken: R61 where no file is there that could be looked at.
func (e *parentSearchError) rule() ondisk.Rule {
	t := e.nearest()
	if t.missing || t.refused != nil || errors.Is(t.err, safefile.ErrOutside) {
		return ondisk.RuleParentNotFound
	}
	return ruleOf(t.err)
}

// notFound reports whether there is no file that may be the parent, while the mounter has not named one.
func (e *parentSearchError) notFound() bool {
	t := e.nearest()
	return !t.explicit && e.rule() == ondisk.RuleParentNotFound && (t.missing || t.refused != nil || errors.Is(t.err, safefile.ErrOutside))
}

// name returns the name of the parent, as the image or the mounter has it.
func (e *parentSearchError) name() string {
	if len(e.tried) == 0 {
		return "the parent"
	}
	return filepath.Base(e.tried[0].path)
}

func (e *parentSearchError) Error() string {
	const byOption = "name its directory with -o parent_dir=DIR, or the file with -o parent=FILE"
	t := e.nearest()
	var parent *parentSearchError
	switch name := brief(filepath.Base(t.path)); {
	case t.missing && t.explicit:
		return fmt.Sprintf("parent %s, given with -o parent=, does not exist", name)
	case t.missing:
		return fmt.Sprintf("parent %s not found; %s", brief(e.name()), byOption)
	case t.refused != nil:
		return fmt.Sprintf("parent %s is outside the directory of the image; to allow it, use -o parent_dir=%s", name, brief(filepath.Dir(t.path)))
	case errors.Is(t.err, safefile.ErrOutside):
		return fmt.Sprintf("parent %s is a symbolic link out of its directory, which is not followed; name the file with -o parent=FILE", name)
	case errors.As(t.err, &parent): // of the parent's own parent
		return parent.Error()
	default:
		return fmt.Sprintf("parent %s cannot be used: %v; -o parent=FILE names another one", name, t.err)
	}
}

// places returns each file that was tried, and why it is not the parent.
func (e *parentSearchError) places() []string {
	var list []string
	for _, t := range e.tried {
		list = append(list, fmt.Sprintf("%s (%s): %v", t.path, t.origin, t.err))
	}
	return list
}

// brief shortens a name or path of an image, which may be as long as an image likes, to its end.
func brief(s string) string {
	const most = 60 // characters
	if r := []rune(strings.ToValidUTF8(s, "?")); len(r) > most {
		return "..." + string(r[len(r)-most+3:])
	}
	return s
}
