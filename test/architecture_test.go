package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// quoted is what a page has as code.
var quoted = regexp.MustCompile("`([^`\n]+)`")

// page returns the text of a page of the project, without its drawings.
func page(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", name))
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile("(?s)```.*?```").ReplaceAllString(string(b), "")
}

// The files that the pages for those who change the program send them to are there.
func TestPagesNameFilesThatExist(t *testing.T) {
	seen := 0
	for _, name := range []string{"ARCHITECTURE.md", "CONTRIBUTING.md", "docs/engine.md", "docs/cluster.md", "docs/security.md", "docs/format.md"} {
		for _, m := range quoted.FindAllStringSubmatch(page(t, name), -1) {
			if !regexp.MustCompile(`^[a-z0-9_*/.]+\.(go|md)$`).MatchString(m[1]) {
				continue
			}
			seen++
			found := false
			for _, dir := range []string{"", "vhdx", "fs"} { // the last two for pages about them alone
				if dir != "" && name != "docs/engine.md" {
					continue
				}
				files, err := filepath.Glob(filepath.Join("..", dir, m[1]))
				found = found || err == nil && len(files) > 0
			}
			if !found {
				t.Errorf("%s: there is no %s", name, m[1])
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d names of files were found", seen)
	}
}

// The table of ARCHITECTURE.md has every package.
func TestArchitectureHasEveryPackage(t *testing.T) {
	text := page(t, "ARCHITECTURE.md")
	module := strings.TrimSpace(must(t, "go", "list", "-m"))
	for path := range strings.Lines(must(t, "go", "list", module+"/...")) {
		path = strings.TrimPrefix(strings.TrimSpace(path), module)
		path = strings.TrimPrefix(path, "/")
		if strings.HasPrefix(path, "internal/scripts/") {
			path = "internal/scripts"
		}
		if path == "" {
			path = "main.go"
		}
		if !strings.Contains(text, "`"+path+"`") {
			t.Errorf("package %s is not in ARCHITECTURE.md", path)
		}
	}
}

// lockNames are the locks of the engine by type and field, as ARCHITECTURE.md calls them.
var lockNames = map[string]string{
	"writer.reshaping":   "reshaping",
	"writer.gate":        "gate",
	"blockLocks":         "blocks",
	"writer.chunkMu":     "chunkMu",
	"writer.fillMu":      "fillMu",
	"sharedRun.mu":       "rounds.mu",
	"committer.mu":       "committer.mu",
	"headerState.mu":     "headers.mu",
	"dirtyPages.mu":      "dirty.mu",
	"allocator.mu":       "space.mu",
	"readEpochs.turning": "turning",
	"layer.mu":           "layer.mu",
	"Builder.mu":         "Builder.mu",
}

// The table of locks in ARCHITECTURE.md has every lock of package vhdx, and no other.
func TestArchitectureHasEveryLock(t *testing.T) {
	_, table, _ := strings.Cut(page(t, "ARCHITECTURE.md"), "| lock | guards |")
	table, _, _ = strings.Cut(table, "\n\n")
	var rows, locks []string
	for line := range strings.Lines(table) {
		if m := regexp.MustCompile("^\\| `([^`]+)` \\|").FindStringSubmatch(line); m != nil {
			rows = append(rows, m[1])
		}
	}
	files, err := filepath.Glob("../vhdx/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			typ, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if array, ok := typ.Type.(*ast.ArrayType); ok && isLock(array.Elt) {
				locks = append(locks, typ.Name.Name)
			}
			if s, ok := typ.Type.(*ast.StructType); ok {
				for _, f := range s.Fields.List {
					for _, field := range f.Names {
						if isLock(f.Type) {
							locks = append(locks, typ.Name.Name+"."+field.Name)
						}
					}
				}
			}
			return true
		})
	}
	for _, l := range locks {
		if !slices.Contains(rows, lockNames[l]) {
			t.Errorf("the lock %s is not in the table", l)
		}
	}
	if len(rows) != len(locks) {
		t.Errorf("the table has %d rows for %d locks: %v, %v", len(rows), len(locks), rows, locks)
	}
}

// isLock reports whether a type is a lock of package sync.
func isLock(e ast.Expr) bool {
	s, ok := e.(*ast.SelectorExpr)
	return ok && (s.Sel.Name == "Mutex" || s.Sel.Name == "RWMutex")
}
