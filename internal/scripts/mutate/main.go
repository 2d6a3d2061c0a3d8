// Mutate breaks one place of the program after the other, and runs the tests of its package each time: what no test notices
// is not tested. It is run by hand, since a mutant takes as long as its tests do.
//
//	go run ./internal/scripts/mutate -n 100 ./vhdx ./journal ./cache ./fs
//	go run ./internal/scripts/mutate -at edit.go:94 ./vhdx
//
// The files are left alone: go test gets the broken one by -overlay. A mutant is noticed where a test fails or hangs. What
// survived so far, with the reason why it may, is in docs/mutants.md.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

var (
	count   = flag.Int("n", 0, "how many mutants to try, chosen by the seed; 0 is all")
	seed    = flag.Uint64("seed", 1, "chooses the mutants")
	timeout = flag.Duration("timeout", 2*time.Minute, "how long the tests of one mutant may take before it counts as noticed")
	at      = flag.String("at", "", "only mutants at this place, FILE.go or FILE.go:LINE")
	run     = flag.String("run", "", "only these tests, as for go test")
	skip    = flag.String("skip", "PowerCut|FindsMutants|Fuzz", "not these tests, as for go test; the default leaves out what is slow")
	list    = flag.Bool("list", false, "print the mutants, and run nothing")
)

func main() {
	flag.Parse()
	survivors, err := mutate(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(2)
	}
	if survivors > 0 {
		os.Exit(1)
	}
}

// A mutant is one change of one file.
type mutant struct {
	dir, file string
	line      int
	from, to  int // bytes of the file that are replaced
	text      string
	what      string
}

func (m *mutant) String() string {
	return fmt.Sprintf("%s:%d: %s", filepath.Join(m.dir, m.file), m.line, m.what)
}

func mutate(dirs []string) (survivors int, err error) {
	var all []*mutant
	for _, dir := range dirs {
		found, err := mutantsOf(filepath.Clean(dir))
		if err != nil {
			return 0, err
		}
		all = append(all, found...)
	}
	all = slices.DeleteFunc(all, func(m *mutant) bool {
		return *at != "" && *at != m.file && *at != fmt.Sprintf("%s:%d", m.file, m.line)
	})
	if *count > 0 && *count < len(all) {
		rng := rand.New(rand.NewPCG(*seed, 0))
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		all = all[:*count]
	}
	results := map[string]int{}
	for _, m := range all {
		if *list {
			fmt.Println(m)
			continue
		}
		result, err := m.test()
		if err != nil {
			return 0, err
		}
		results[result]++
		fmt.Printf("%-10s %v\n", result, m)
	}
	fmt.Printf("%d mutants: %v\n", len(all), results)
	return results[survived], nil
}

// What becomes of a mutant.
const (
	survived = "SURVIVED"
	noticed  = "noticed"
	hangs    = "hangs"
	invalid  = "invalid" // it does not compile
)

// test runs the tests of the mutant's package.
func (m *mutant) test() (string, error) {
	dir, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	path, err := filepath.Abs(filepath.Join(m.dir, m.file))
	if err != nil {
		return "", err
	}
	src, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	broken := filepath.Join(dir, m.file)
	if err := os.WriteFile(broken, slices.Concat(src[:m.from], []byte(m.text), src[m.to:]), 0o600); err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: broken}})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "test")
	build := exec.Command("go", "test", "-c", "-vet=off", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, "./"+m.dir)
	if out, err := build.CombinedOutput(); err != nil {
		if bytes.Contains(out, []byte(m.file)) {
			return invalid, nil
		}
		return "", fmt.Errorf("build the tests of %s: %w\n%s", m.dir, err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "-test.short", "-test.failfast", "-test.run", *run, "-test.skip", *skip)
	cmd.Dir = m.dir
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return hangs, nil
	case errors.As(err, &exit):
		return noticed, nil
	case err != nil:
		return "", err
	}
	return survived, nil
}

// mutantsOf returns all mutants of the package in a folder.
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
		src, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, src, 0)
		if err != nil {
			return nil, err
		}
		b := &breaker{fset: fset, src: src, dir: dir, file: filepath.Base(path)}
		ast.Inspect(f, b.visit)
		all = append(all, b.mutants...)
	}
	return all, nil
}

// A breaker finds what can be broken in a file.
type breaker struct {
	fset      *token.FileSet
	src       []byte
	dir, file string
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
		b.replace(n.Cond, "!("+b.text(n.Cond)+")", "if not "+b.text(n.Cond))
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
		if n.Tok != token.DEFINE { // the variables are used, or it would not compile
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
		what = what[:100] + "…"
	}
	b.mutants = append(b.mutants, &mutant{
		dir: b.dir, file: b.file, line: from.Line, from: from.Offset, to: b.fset.Position(n.End()).Offset, text: text, what: what,
	})
}
