package vhdx

import (
	"errors"
	"fmt"
	"os"

	"github.com/vhdxfs/vhdxfs/vhdx/imagefile"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A Report is the outcome of Check.
type Report struct {
	Path     string    `json:"path"`
	Errors   []Finding `json:"errors"`   // broken rules: the image is refused, or may not be written
	Warnings []Finding `json:"warnings"` // what is tolerated, or wastes space
	Leaked   int64     `json:"leaked_bytes"`
	Lost     bool      `json:"bat_lost,omitempty"` // what is leaked may be blocks of which the BAT has lost its entries
	Advice   string    `json:"advice,omitempty"`   // what the findings mean taken together
	Dropped  int       `json:"dropped,omitempty"`  // findings beyond the limit of the report
	Parent   *Report   `json:"parent,omitempty"`
	Info     *Info     `json:"info,omitempty"` // nil when the image could not be opened
}

// A Finding is one thing that Check found. Rule and Structure are empty where no rule is broken.
type Finding struct {
	Rule      string `json:"rule,omitempty"` // such as "R49"
	Structure string `json:"structure,omitempty"`
	Offset    int64  `json:"offset"` // file offset in bytes
	Message   string `json:"message"`
}

// Clean reports whether neither the image nor its parents gave cause for an error or a warning.
func (r *Report) Clean() bool {
	return r.Sound() && len(r.Warnings) == 0 && (r.Parent == nil || r.Parent.Clean())
}

// Sound reports whether neither the image nor its parents break a rule.
func (r *Report) Sound() bool {
	return len(r.Errors) == 0 && (r.Parent == nil || r.Parent.Sound())
}

// Check opens the image at path read-only, parents included, and reports every broken rule, tolerated
// oddity and leak that it finds. The error tells that the image could not be examined at all, as when the
// file cannot be opened; a damaged image is no error but a report.
func Check(path string, o Options) (*Report, error) {
	op := newOpener(o)
	op.collect, op.MissingParent = true, true
	l, err := op.openLayer(path, os.O_RDONLY, imagefile.Shared)
	if err != nil {
		return nil, err
	}
	defer l.close()
	err = l.load()
	if err == nil {
		err = op.openParent(l)
	}
	if err == nil {
		for p := l; p != nil && err == nil; p = p.parent() {
			err = p.warnLost()
		}
	}
	r := l.newReport()
	var fe *FormatError
	switch {
	case errors.As(err, &fe):
		r.Errors = append(r.Errors, newFinding(fe))
	case err != nil && len(l.errors) > 0: // what follows from a broken rule, such as a read beyond the file
		r.Errors = append(r.Errors, Finding{Message: "the check ended here: " + err.Error()})
	case err != nil:
		return nil, fmt.Errorf("%s: %w", path, err)
	default:
		r.Info = l.info()
	}
	r.Advice = l.cutOff(r.Errors)
	return r, nil
}

// newReport returns what was found about the layer and its parents.
func (l *layer) newReport() *Report {
	r := &Report{
		Path:     l.path,
		Errors:   append([]Finding{}, l.errors...),
		Warnings: append([]Finding{}, l.warnings...),
		Dropped:  l.dropped,
		Lost:     l.lost,
	}
	if l.unfound != nil {
		r.Warnings = append(r.Warnings, Finding{
			Rule: ondisk.RuleParentNotFound.Name(), Structure: "parent locator", Offset: l.meta.locatorOffset,
			Message: "only this image was checked: " + l.unfound.Error(),
		})
	}
	if l.space != nil {
		r.Leaked = l.space.free()
	}
	if l.parent() != nil {
		r.Parent = l.parent().newReport()
	}
	return r
}

func newFinding(e *FormatError) Finding {
	return Finding{Rule: e.Rule.Name(), Structure: e.Structure, Offset: e.Offset, Message: e.Err.Error()}
}
