package cli

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/vhdxfs/vhdxfs/internal/active"
	"github.com/vhdxfs/vhdxfs/internal/compare"
	"github.com/vhdxfs/vhdxfs/internal/delta"
	"github.com/vhdxfs/vhdxfs/vhdx"
)

// Every field that a command can print with --json is in docs/json.md, by which others read it.
func TestJSONIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\n## ")
	sections := map[string]string{}
	for text := range strings.SplitSeq(rest, "\n## ") {
		title, body, _ := strings.Cut(text, "\n")
		for name := range strings.SplitSeq(title, ", ") {
			sections[name] = body
		}
	}
	for name, values := range map[string][]any{
		"info": {imageInfo{}, vhdInfo{}}, "check": {vhdx.Report{}, vhdx.RepairReport{}, vhdx.UndoResult{}}, "map": {mapEntry{}, qemuEntry{}},
		"convert": {copyReport{}}, "compare": {comparison{}, compare.Range{}, deltaReport{}}, "apply": {delta.Applied{}}, "hash": {hashReport{}}, "chain": {tree{}},
		"snapshot": {vhdx.SnapshotResult{}}, "merge": {vhdx.MergeResult{}}, "set-parent": {vhdx.SetParentResult{}},
		"compact": {compactReport{}}, "resize": {resizeReport{}}, "list": {active.Mount{}}, "open": {openReport{}}, "files": {fileEntry{}}, "extract": {extractReport{}},
		"break-lease": {vhdx.BrokenLease{}}, "probe": {storageReport{}},
	} {
		for _, v := range values {
			described := map[reflect.Type]bool{ // in sections of their own
				reflect.TypeFor[vhdx.Info](): name != "info", reflect.TypeFor[vhdx.Finding](): name != "check",
			}
			for _, field := range jsonFields(reflect.TypeOf(v), described) {
				if name == "chain" && field == "parent" { // which is where the tree has its root
					continue
				}
				if !strings.Contains(sections[name], "`"+field+"`") {
					t.Errorf("%s: the field %s of %T is not in docs/json.md", name, field, v)
				}
			}
		}
	}
	for _, c := range newRoot(nil).Commands() {
		if f := c.Flags().Lookup("json"); f != nil && !f.Hidden && sections[c.Name()] == "" {
			t.Errorf("%s --json has no section in docs/json.md", c.Name())
		}
	}
}

// jsonFields returns the names of the fields that a type has in JSON, those of the types in it included, but for types
// that were seen.
func jsonFields(t reflect.Type, seen map[reflect.Type]bool) (names []string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Array {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || seen[t] {
		return nil
	}
	seen[t] = true
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() && !f.Anonymous {
			continue
		}
		if name != "" {
			names = append(names, name)
		}
		names = append(names, jsonFields(f.Type, seen)...)
	}
	return names
}
