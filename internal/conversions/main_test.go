package main

import (
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"testing"
)

// Each line says whether it loses a number.
func TestLoses(t *testing.T) {
	const text = `package p
type offset uint64
var a uint64; var b uint32; var c int64; var d offset
var (
	_ = int64(a)  // yes
	_ = uint32(a) // yes
	_ = int(d)    // yes
	_ = int64(a) // #nosec G115 -- a reason
	_ = int64(a) // #nosec G115 // yes
	_ = uint64(d)
	_ = float64(a)
	_ = int64(b)
	_ = uint64(c)
	_ = int64(uint64(7))
)`
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "p.go", text, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	info := &types.Info{Types: make(map[ast.Expr]types.TypeAndValue)}
	if _, err := (&types.Config{Importer: importer.Default()}).Check("p", fset, []*ast.File{f}, info); err != nil {
		t.Fatal(err)
	}
	want := map[int]bool{5: true, 6: true, 7: true, 9: true}
	for _, p := range losing(fset, info, f) {
		if line := fset.Position(p.Pos()).Line; !want[line] {
			t.Errorf("line %d loses nothing, or has a reason", line)
		} else {
			delete(want, line)
		}
	}
	if len(want) > 0 {
		t.Errorf("not found: %v", want)
	}
}
