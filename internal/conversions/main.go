// Command conversions lists conversions of 64-bit unsigned integers to types that do not hold all of them, such as int64, in the
// packages that it is given. A number of an image is such an integer, and a large one becomes negative, which no bound from
// above finds. A line with a comment "#nosec G115 -- " and a reason is quiet, as it is for gosec, which has the same rule.
// That one is not used: its module needs hundreds of others.
package main

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"os"
	"strings"

	"golang.org/x/tools/go/packages"
)

func main() {
	fset := token.NewFileSet()
	list, err := packages.Load(&packages.Config{Mode: packages.LoadSyntax, Fset: fset}, os.Args[1:]...)
	if err != nil || packages.PrintErrors(list) > 0 {
		fmt.Fprintln(os.Stderr, "conversions:", err)
		os.Exit(2)
	}
	found := 0
	for _, p := range list {
		for _, f := range p.Syntax {
			for _, call := range losing(fset, p.TypesInfo, f) {
				found++
				fmt.Printf("%s: %s is made of a 64-bit unsigned integer, which may be too large: check it, or say why it is not, in a comment #nosec G115 -- reason\n",
					fset.Position(call.Pos()), types.ExprString(call))
			}
		}
	}
	if found > 0 {
		os.Exit(1)
	}
}

// losing returns the conversions of a file that lose a number and have no reason.
func losing(fset *token.FileSet, info *types.Info, f *ast.File) (calls []*ast.CallExpr) {
	quiet := reasons(fset, f)
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if ok && len(call.Args) == 1 && loses(info, call) && !quiet[fset.Position(call.Pos()).Line] {
			calls = append(calls, call)
		}
		return true
	})
	return calls
}

// reasons returns the lines that have a comment with a reason.
func reasons(fset *token.FileSet, f *ast.File) map[int]bool {
	lines := make(map[int]bool)
	for _, g := range f.Comments {
		for _, c := range g.List {
			if _, reason, ok := strings.Cut(c.Text, "#nosec G115 -- "); ok && reason != "" {
				lines[fset.Position(c.Pos()).Line] = true
			}
		}
	}
	return lines
}

// loses reports whether a call is a conversion of a uint64 or uint that is no constant to an integer that does not hold it.
func loses(info *types.Info, call *ast.CallExpr) bool {
	to, from := info.Types[call.Fun], info.Types[call.Args[0]]
	if !to.IsType() || from.Value != nil {
		return false
	}
	t, ok1 := to.Type.Underlying().(*types.Basic)
	f, ok2 := from.Type.Underlying().(*types.Basic)
	if !ok1 || !ok2 || f.Kind() != types.Uint64 && f.Kind() != types.Uint {
		return false
	}
	switch t.Kind() {
	case types.Int, types.Int8, types.Int16, types.Int32, types.Int64, types.Uint8, types.Uint16, types.Uint32:
		return true
	}
	return false
}
