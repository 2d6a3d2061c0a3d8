package fault

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCatch(t *testing.T) {
	catch := func(do func() error) (err error) {
		defer Catch(&err)
		return do()
	}
	plain := errors.New("plain")
	for _, c := range []struct {
		name  string
		do    func() error
		want  error
		fault bool
	}{
		{"no error", func() error { return nil }, nil, false},
		{"an error", func() error { return plain }, plain, false},
		{"a panic", func() error { panic("oh") }, nil, true},
		{"an index", func() error { return []error{}[len("x")] }, nil, true},
	} {
		err := catch(c.do)
		f, ok := errors.AsType[*Error](err)
		if ok != c.fault || !ok && err != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
		if ok && !strings.Contains(string(f.Stack), "TestCatch") {
			t.Errorf("%s: the stack does not show where it was: %s", c.name, f.Stack)
		}
	}
	var got error
	func() {
		defer Then(func(err error) { got = err })
		panic("oh")
	}()
	if got == nil || !strings.Contains(got.Error(), "report it: oh") {
		t.Errorf("Then calls with %v", got)
	}
}

// A panic in a goroutine without a recover ends the process, and with a mount all who use it. So each goroutine of the
// program begins with one: among the first statements of its body.
func TestEveryGoroutineCatches(t *testing.T) {
	root := filepath.Join("..", "..")
	fset := token.NewFileSet()
	methods := make(map[string][]*ast.FuncDecl) // by directory and name
	var files []*ast.File
	var directories []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (path == filepath.Join(root, "test") || path == filepath.Join(root, "internal", "otheruser") || strings.HasPrefix(d.Name(), ".") && path != root):
			return fs.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		if src, err := os.ReadFile(path); err != nil || bytes.Contains(src, []byte("//go:build probe\n")) {
			return err // what only a build for tests has
		}
		files, directories = append(files, file), append(directories, filepath.Dir(path))
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				key := filepath.Dir(path) + "." + f.Name.Name
				methods[key] = append(methods[key], f)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for i, file := range files {
		check := func(at token.Pos, body *ast.BlockStmt) {
			seen++
			if !catches(body) {
				t.Errorf("%v: the goroutine does not begin with a recover of this package", fset.Position(at))
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				if f, ok := n.Call.Fun.(*ast.FuncLit); ok {
					check(n.Pos(), f.Body)
					break
				}
				named := methods[directories[i]+"."+lastName(n.Call.Fun)]
				// Of several methods of one name, any may be the one that is meant.
				if i := slices.IndexFunc(named, func(f *ast.FuncDecl) bool { return catches(f.Body) }); i >= 0 {
					check(n.Pos(), named[i].Body)
				} else {
					check(n.Pos(), nil)
				}
			case *ast.CallExpr:
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Go" && len(n.Args) == 1 {
					f, ok := n.Args[0].(*ast.FuncLit)
					if ok {
						check(n.Pos(), f.Body)
					} else {
						check(n.Pos(), nil)
					}
				}
			}
			return true
		})
	}
	if seen < 15 {
		t.Errorf("only %d goroutines were found", seen)
	}
}

// catches reports whether one of the first statements of a body defers a recover.
func catches(body *ast.BlockStmt) bool {
	if body == nil {
		return false
	}
	for _, s := range body.List[:min(4, len(body.List))] {
		d, ok := s.(*ast.DeferStmt)
		if !ok {
			continue
		}
		switch sel, ok := d.Call.Fun.(*ast.SelectorExpr); {
		case !ok:
		case sel.Sel.Name == "catch": // the writer's
			return true
		case lastName(sel.X) == "fault" && sel.Sel.Name != "New":
			return true
		}
	}
	return false
}

func lastName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}
