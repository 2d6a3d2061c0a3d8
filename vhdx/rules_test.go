package vhdx

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A ruleCase is one change to a good image. With good set the change goes as far as the rule allows, and the
// image opens; otherwise it breaks just this rule.
type ruleCase struct {
	rule   ondisk.Rule
	name   string
	spec   spec
	good   bool
	damage func(s *scene)
}

// A scene is the image of a ruleCase and what lies beside it.
type scene struct {
	*image
	parent *image            // written as parent.vhdx; nil if there is none
	others map[string]*image // by file name
	opts   Options
}

// allRuleCases are the tests of all rules, each list in the file named after its part of the format.
var allRuleCases = [][]ruleCase{headerRules, logRules, regionRules, metadataRules, batRules, parentRules}

func TestHeaderRules(t *testing.T)   { testRules(t, headerRules) }
func TestLogRules(t *testing.T)      { testRules(t, logRules) }
func TestRegionRules(t *testing.T)   { testRules(t, regionRules) }
func TestMetadataRules(t *testing.T) { testRules(t, metadataRules) }
func TestBATRules(t *testing.T)      { testRules(t, batRules) }
func TestParentRules(t *testing.T)   { testRules(t, parentRules) }

func TestEveryRuleHasACase(t *testing.T) {
	broken := make(map[ondisk.Rule]bool)
	for _, list := range allRuleCases {
		for _, c := range list {
			broken[c.rule] = broken[c.rule] || !c.good
		}
	}
	for r := range ondisk.Rules {
		if !broken[r] {
			t.Errorf("no test breaks %v: %s", r, r.Text())
		}
	}
}

func testRules(t *testing.T, cases []ruleCase) {
	for _, c := range cases {
		verdict := ""
		if c.good {
			verdict = "keeps "
		}
		t.Run(verdict+c.rule.Name()+" "+c.name, func(t *testing.T) {
			t.Parallel()
			c.run(t)
		})
	}
}

func (c *ruleCase) run(t *testing.T) {
	s := &scene{image: build(c.spec), others: make(map[string]*image)}
	if c.spec.typ == Differencing {
		s.parent = build(spec{diskSize: s.diskSize, blockSize: s.blockSize, sectorSize: s.sectorSize, blocks: []blockSpec{{0, ondisk.FullyPresent}}})
	}
	c.damage(s)

	dir := t.TempDir()
	files := map[string]*image{"image.vhdx": s.image}
	if s.parent != nil {
		files["parent.vhdx"] = s.parent
	}
	for name, im := range s.others {
		files[name] = im
	}
	for name, im := range files {
		im.writeTo(t, filepath.Join(dir, name))
	}
	path := filepath.Join(dir, "image.vhdx")

	im, err := Open(path, s.opts)
	if err == nil {
		im.Close()
	}
	if c.good && err != nil {
		t.Errorf("Open: %v; want no error", err)
	}
	if !c.good {
		if err := brokenRule(err, c.rule); err != nil {
			t.Errorf("Open: %v", err)
		}
	}
	c.check(t, path, s.opts)

	for name, im := range files {
		if !im.sameAs(t, filepath.Join(dir, name)) {
			t.Errorf("%s has changed", name)
		}
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != len(files) {
		t.Errorf("the directory holds %d files, %v; want %d", len(list), err, len(files))
	}
}

// brokenRule says in what err differs from an error that names rule r.
func brokenRule(err error, r ondisk.Rule) error {
	var fe *FormatError
	switch {
	case err == nil:
		return fmt.Errorf("no error; want %v", r)
	case !errors.As(err, &fe), !errors.Is(err, ErrCorrupt):
		return fmt.Errorf("%w: no FormatError that matches ErrCorrupt; want %v", err, r)
	case fe.Rule != r:
		return fmt.Errorf("%w: breaks %v; want %v", err, fe.Rule, r)
	case fe.Structure == "" || !strings.Contains(err.Error(), r.Name()):
		return fmt.Errorf("%w: does not say where, or not which rule", err)
	}
	return nil
}

// check checks that Check comes to the verdict of Open.
func (c *ruleCase) check(t *testing.T, path string, o Options) {
	report, err := Check(path, o)
	if err != nil {
		t.Fatalf("Check: %v", err)
	}
	missing := c.rule == ondisk.RuleParentNotFound && !c.good && len(o.Parents) == 0 // the image is checked without its parent, too
	if report.Sound() != (c.good || missing) || report.Clean() && !c.good {
		t.Errorf("Check: sound is %v with the errors %+v", report.Sound(), report.Errors)
	}
	var found []string
	for r := report; r != nil; r = r.Parent {
		for _, f := range slices.Concat(r.Errors, r.Warnings) {
			found = append(found, f.Rule)
			if f.Rule == c.rule.Name() || c.rule == ondisk.RuleParentUnreadable && r != report { // what is wrong with the parent says more
				return
			}
		}
	}
	if !c.good {
		t.Errorf("Check found %v broken; want %v", found, c.rule)
	}
}

// poke returns a damage that overwrites the bytes at file offset off.
func poke(off int64, p string) func(*scene) {
	return func(s *scene) { s.write([]byte(p), off) }
}

// inHeaders returns a damage that changes both headers, and makes their checksums good again.
func inHeaders(do func(h *ondisk.Header)) func(*scene) {
	return func(s *scene) { s.setHeaders(do) }
}

// inRegions returns a damage that changes the entries of the region table: the BAT region first, then the
// metadata region.
func inRegions(do func(r []ondisk.Region) []ondisk.Region) func(*scene) {
	return func(s *scene) { s.setRegions(do) }
}
