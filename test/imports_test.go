package test

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// layers are the packages of the program, the lowest first. A package imports what stands in an earlier line alone, as
// ARCHITECTURE.md says.
var layers = [][]string{
	{"internal/terminal", "internal/startup"},
	{"internal/tally", "internal/fault", "internal/size", "internal/spelling", "internal/safefile", "internal/content", "internal/loop", "internal/filesystem", "internal/sandbox", "internal/erofs", "internal/utf16text"},
	{"internal/filetree", "internal/processes"},
	{"internal/partition", "vhdx/ondisk", "vhdx/imagefile", "cache"},
	{"internal/newfile", "journal", "vhdx/lease", "vhdx/undofile"},
	{"vhdx"},
	{"internal/vhd"},
	{"internal/mounts", "internal/disk", "internal/draw"},
	{"fs", "internal/active", "internal/convert", "internal/compare", "internal/hash"},
	{"internal/delta", "internal/monitor", "internal/mountoption"},
	{"internal/cli"},
	{""}, // the command
}

// apart are pairs of packages of which the first never imports the second, although the layers would let it.
var apart = [][2]string{
	{"journal", "cache"}, // both know pages at file offsets alone
	{"internal/convert", "fs"},
	{"internal/compare", "fs"},
	{"internal/hash", "fs"},
	{"internal/delta", "fs"},
	{"fs", "internal/content"},
}

// Imports go one way.
func TestImportsGoOneWay(t *testing.T) {
	module := strings.TrimSpace(must(t, "go", "list", "-m"))
	short := func(path string) string { return strings.TrimPrefix(strings.TrimPrefix(path, module), "/") }
	imports := make(map[string][]string)
	for line := range strings.Lines(must(t, "go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, module+"/...")) {
		words := strings.Fields(line)
		name := short(words[0])
		if strings.HasPrefix(name, "test") || strings.HasPrefix(name, "internal/scripts") || name == "internal/manpages" || name == "internal/otheruser" || name == "internal/conversions" {
			continue // no part of the program
		}
		imports[name] = nil
		for _, path := range words[1:] {
			if strings.HasPrefix(path, module+"/") {
				imports[name] = append(imports[name], short(path))
			}
		}
	}
	level := make(map[string]int)
	for i, names := range layers {
		for _, name := range names {
			level[name] = i
			if _, ok := imports[name]; !ok {
				t.Errorf("there is no package %q", name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(imports)) {
		at, known := level[name]
		if !known {
			t.Errorf("package %s is in no layer", name)
			continue
		}
		for _, other := range imports[name] {
			if l, ok := level[other]; !ok || l >= at {
				t.Errorf("%s imports %s, which is not below it", name, other)
			}
			if slices.Contains(apart, [2]string{name, other}) {
				t.Errorf("%s imports %s", name, other)
			}
		}
	}
}
