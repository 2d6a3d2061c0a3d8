package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A mutant is one change of one file.
type mutant struct {
	dir, file   string
	function    string // empty outside functions
	first, last int    // lines of the function
	line, col   int
	from, to    int // bytes of the file that are replaced
	text        string
	what        string
	nth         int  // among equal ones of the function
	alone       bool // it cannot be a copy of its function

	id      int // in the last build, from 1
	invalid bool
}

func (m *mutant) String() string {
	return fmt.Sprintf("%s:%d: %s", filepath.Join(m.dir, m.file), m.line, m.what)
}

// key names a mutant independently of lines, so that it stays the same while other functions change.
func (m *mutant) key() string {
	return fmt.Sprintf("%s %s: %s #%d", filepath.Join(m.dir, m.file), m.function, m.what, m.nth)
}

// isAt tells whether a mutant is at one of the places of a list, such as edit.go,dirty.go:94. The empty list has all.
func (m *mutant) isAt(places string) bool {
	return places == "" || slices.ContainsFunc(strings.Split(places, ","), func(p string) bool {
		return p == m.file || p == fmt.Sprintf("%s:%d", m.file, m.line)
	})
}

// mutantsOf returns all mutants of the package in a directory.
func mutantsOf(dir string) ([]*mutant, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	var all []*mutant
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		fset, f, src, err := parse(path)
		if err != nil {
			return nil, err
		}
		b := &breaker{fset: fset, src: src, dir: dir, file: filepath.Base(path), equal: map[string]int{}}
		for _, decl := range f.Decls {
			b.function, _ = decl.(*ast.FuncDecl)
			ast.Inspect(decl, b.visit)
		}
		all = append(all, b.mutants...)
	}
	return all, nil
}

// parse reads and parses a file.
func parse(path string) (*token.FileSet, *ast.File, []byte, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, nil, err
	}
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, src, 0)
	return fset, f, src, err
}

// A breaker finds what can be broken in a file.
type breaker struct {
	fset      *token.FileSet
	src       []byte
	dir, file string
	function  *ast.FuncDecl
	equal     map[string]int // how many mutants have the key
	mutants   []*mutant
}

// other is what an operator becomes.
var other = map[token.Token]token.Token{
	token.LSS: token.LEQ, token.LEQ: token.LSS, token.GTR: token.GEQ, token.GEQ: token.GTR,
	token.EQL: token.NEQ, token.NEQ: token.EQL, token.ADD: token.SUB, token.SUB: token.ADD,
	token.AND: token.OR, token.SHL: token.SHR, token.SHR: token.SHL, token.AND_NOT: token.AND,
}

func (b *breaker) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.BinaryExpr:
		b.binary(n)
	case *ast.IfStmt:
		if c, ok := n.Cond.(*ast.BinaryExpr); !ok || c.Op != token.EQL && c.Op != token.NEQ { // they are swapped anyway
			b.replace(n.Cond, "!("+b.text(n.Cond)+")", "if not "+b.text(n.Cond))
		}
		b.replace(n.Cond, "false && ("+b.text(n.Cond)+")", "never if "+b.text(n.Cond))
	case *ast.ExprStmt:
		// Without an unlock everything hangs, which says nothing.
		if call := b.text(n); !strings.HasSuffix(call, "ock()") {
			b.replace(n, "", "without "+call)
		}
	case *ast.DeferStmt:
		if call := b.text(n); !strings.HasSuffix(call, "ock()") {
			b.replace(n, "", "without "+call)
		}
	case *ast.AssignStmt:
		switch {
		case n.Tok == token.DEFINE:
		case !slices.ContainsFunc(n.Lhs, func(e ast.Expr) bool { return b.text(e) != "_" }): // a call whose result does not matter
			b.replace(n, "", "without "+b.text(n))
		default: // the variables are used, or it would not compile
			b.replace(n, strings.Repeat("_, ", len(n.Rhs)-1)+"_ = "+b.texts(n.Rhs), "without "+b.text(n))
		}
	case *ast.IncDecStmt:
		b.replace(n, "", "without "+b.text(n))
	case *ast.CallExpr:
		// The bounds that numbers of an image are held to.
		if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "min" || f.Name == "max") && len(n.Args) == 2 {
			b.replace(n, "("+b.text(n.Args[0])+")", "only the first of "+b.text(n))
			b.replace(n, "("+b.text(n.Args[1])+")", "only the second of "+b.text(n))
		}
	case *ast.GenDecl:
		return n.Tok == token.VAR // constants and types are what tests are made of, too
	}
	return true
}

func (b *breaker) binary(n *ast.BinaryExpr) {
	if n.Op == token.LAND || n.Op == token.LOR {
		b.replace(n, "("+b.text(n.X)+")", "without "+n.Op.String()+" "+b.text(n.Y))
		b.replace(n, "("+b.text(n.Y)+")", "without "+b.text(n.X)+" "+n.Op.String())
		return
	}
	if op, ok := other[n.Op]; ok {
		b.replace(n, "("+b.text(n.X)+" "+op.String()+" ("+b.text(n.Y)+"))", n.Op.String()+" is "+op.String()+" in "+b.text(n))
	}
}

func (b *breaker) text(n ast.Node) string {
	return string(b.src[b.fset.Position(n.Pos()).Offset:b.fset.Position(n.End()).Offset])
}

func (b *breaker) texts(list []ast.Expr) string {
	var s []string
	for _, e := range list {
		s = append(s, b.text(e))
	}
	return strings.Join(s, ", ")
}

func (b *breaker) replace(n ast.Node, text, what string) {
	from := b.fset.Position(n.Pos())
	what = strings.Join(strings.Fields(what), " ")
	if len(what) > 100 {
		what = strings.ToValidUTF8(what[:100], "") + "…"
	}
	m := &mutant{
		dir: b.dir, file: b.file, line: from.Line, col: from.Column, from: from.Offset, to: b.fset.Position(n.End()).Offset,
		text: text, what: what, alone: b.function == nil || !copyable(b.function),
	}
	if b.function != nil {
		m.function = name(b.function)
		m.first, m.last = b.fset.Position(b.function.Pos()).Line, b.fset.Position(b.function.End()).Line
	}
	key := m.key()
	m.nth = b.equal[key]
	b.equal[key]++
	b.mutants = append(b.mutants, m)
}

// name returns the name of a function, for a method with its type.
func name(fn *ast.FuncDecl) string {
	if fn.Recv == nil {
		return fn.Name.Name
	}
	t := fn.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	if index, ok := t.(*ast.IndexExpr); ok {
		t = index.X
	}
	if id, ok := t.(*ast.Ident); ok {
		return id.Name + "." + fn.Name.Name
	}
	return fn.Name.Name
}

// copyable tells whether a copy of the function does the same when the function calls it. Recover works only in a deferred
// function itself, not in one that it calls.
func copyable(fn *ast.FuncDecl) bool {
	good := true
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.Ident); ok && f.Name == "recover" {
				good = false
			}
		}
		return good
	})
	return good
}
