package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// variable is the environment variable that tells a binary which of its mutants to run.
const variable = "VHDXFS_MUTANT"

// selector is the file that reads it, added to the package.
const selector = `package %s

import (
	"os"
	"strconv"
)

var mutant__ = func() int { n, _ := strconv.Atoi(os.Getenv("` + variable + `")); return n }()
`

// buildSelection builds the tests of a package with all mutants in them. Each mutant is a copy of its function, and the
// function calls the copy that the variable names. Mutants that do not compile are found by the compiler's errors, and marked.
func buildSelection(dir, from, binary, temp string, mutants []*mutant) error {
	for i, m := range mutants {
		m.id = i + 1
	}
	overlay := filepath.Join(temp, "overlay.json")
	for {
		copies, err := writeSelection(dir, overlay, temp, mutants)
		if err != nil {
			return err
		}
		out, err := goCommand("build", "-gcflags=-e", "-overlay", overlay, "./"+dir)
		if err == nil {
			break
		}
		if !markInvalid(out, copies) {
			return fmt.Errorf("build %s with mutants: %w\n%s", dir, err, out)
		}
	}
	if out, err := goCommand("test", "-c", "-overlay", overlay, "-o", binary, "./"+from); err != nil {
		return fmt.Errorf("build the tests of %s with mutants: %w\n%s", from, err, out)
	}
	return nil
}

// A place is where the copy of a mutant is in the broken file.
type place struct {
	file        string
	first, last int
	m           *mutant
}

var errorLine = regexp.MustCompile(`(?m)^(\S+\.go):(\d+):\d+: `)

func markInvalid(out []byte, copies []place) (found bool) {
	for _, e := range errorLine.FindAllSubmatch(out, -1) {
		file := filepath.Base(string(e[1]))
		n, _ := strconv.Atoi(string(e[2]))
		i := slices.IndexFunc(copies, func(c place) bool { return c.file == file && c.first <= n && n <= c.last })
		if i < 0 {
			return false
		}
		copies[i].m.invalid = true
		found = true
	}
	return found
}

// writeSelection writes the broken files of a package, and the overlay for the go command that names them.
func writeSelection(dir, overlay, temp string, mutants []*mutant) (copies []place, err error) {
	replace := map[string]string{}
	add := func(name string, content []byte) error {
		path, err := filepath.Abs(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		replace[path] = filepath.Join(temp, name)
		return os.WriteFile(replace[path], content, 0o600)
	}
	byFile := map[string][]*mutant{}
	for _, m := range mutants {
		if !m.invalid && !m.alone {
			byFile[m.file] = append(byFile[m.file], m)
		}
	}
	packageName := ""
	for file, of := range byFile {
		fset, f, src, err := parse(filepath.Join(dir, file))
		if err != nil {
			return nil, err
		}
		packageName = f.Name.Name
		content, in := selection(fset, f, src, of)
		for i := range in {
			in[i].file = file
		}
		copies = append(copies, in...)
		if err := add(file, content); err != nil {
			return nil, err
		}
	}
	if packageName != "" {
		if err := add("mutant__.go", fmt.Appendf(nil, selector, packageName)); err != nil {
			return nil, err
		}
	}
	return copies, writeOverlay(overlay, replace)
}

func writeOverlay(path string, replace map[string]string) error {
	b, err := json.Marshal(map[string]map[string]string{"Replace": replace})
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// selection returns a file in which each function calls its mutants, with the copies behind it.
func selection(fset *token.FileSet, f *ast.File, src []byte, mutants []*mutant) ([]byte, []place) {
	offset := func(p token.Pos) int { return fset.Position(p).Offset }
	var out, copied bytes.Buffer
	var copies []place
	done := 0
	upTo := func(p token.Pos) {
		out.Write(src[done:offset(p)])
		done = offset(p)
	}
	for _, decl := range f.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		from, to := offset(fn.Pos()), offset(fn.End())
		var cases strings.Builder
		var call func(id int) string
		for _, m := range mutants {
			if m.from < from || m.to > to {
				continue
			}
			if call == nil {
				call = nameParameters(fn, upTo, &out, &done, offset)
			}
			fmt.Fprintf(&cases, "case %d: %s; ", m.id, call(m.id))
			first := bytes.Count(copied.Bytes(), []byte("\n")) + 1
			nameEnd := offset(fn.Name.End())
			fmt.Fprintf(&copied, "%s__%d%s%s%s\n", src[from:nameEnd], m.id, src[nameEnd:m.from], m.text, src[m.to:to])
			copies = append(copies, place{first: first, last: bytes.Count(copied.Bytes(), []byte("\n")), m: m})
		}
		if call != nil {
			upTo(fn.Body.Lbrace + 1)
			fmt.Fprintf(&out, " if mutant__ != 0 { switch mutant__ { %s} }; ", cases.String())
		}
	}
	out.Write(src[done:])
	out.WriteByte('\n')
	before := bytes.Count(out.Bytes(), []byte("\n"))
	for i := range copies {
		copies[i].first += before
		copies[i].last += before
	}
	out.Write(copied.Bytes())
	return out.Bytes(), copies
}

// nameParameters writes the head of a function, with a name for each parameter, and returns what calls a copy.
func nameParameters(fn *ast.FuncDecl, upTo func(token.Pos), out *bytes.Buffer, done *int, offset func(token.Pos) int) func(id int) string {
	unnamed := 0
	name := func(field *ast.Field) (names []string) {
		for _, n := range field.Names {
			if n.Name != "_" {
				names = append(names, n.Name)
				continue
			}
			upTo(n.Pos())
			unnamed++
			names = append(names, fmt.Sprintf("unnamed__%d", unnamed))
			out.WriteString(names[len(names)-1])
			*done = offset(n.End())
		}
		if len(field.Names) == 0 {
			upTo(field.Type.Pos())
			unnamed++
			names = append(names, fmt.Sprintf("unnamed__%d", unnamed))
			out.WriteString(names[0] + " ")
		}
		return names
	}
	callee := fn.Name.Name
	if fn.Recv != nil {
		callee = name(fn.Recv.List[0])[0] + "." + callee
	}
	types := ""
	if fn.Type.TypeParams != nil {
		var names []string
		for _, f := range fn.Type.TypeParams.List {
			for _, n := range f.Names {
				names = append(names, n.Name)
			}
		}
		types = "[" + strings.Join(names, ", ") + "]"
	}
	var args []string
	for _, f := range fn.Type.Params.List {
		args = append(args, name(f)...)
		if _, ok := f.Type.(*ast.Ellipsis); ok {
			args[len(args)-1] += "..."
		}
	}
	before, after := "", "; return"
	if fn.Type.Results != nil {
		before, after = "return ", ""
	}
	return func(id int) string {
		return fmt.Sprintf("%s%s__%d%s(%s)%s", before, callee, id, types, strings.Join(args, ", "), after)
	}
}

// buildAlone builds the tests of a package with one mutant that cannot be a copy of a function. It is false if the mutant
// does not compile.
func buildAlone(m *mutant, from, binary, temp string) (bool, error) {
	path, err := filepath.Abs(filepath.Join(m.dir, m.file))
	if err != nil {
		return false, err
	}
	src, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	broken := filepath.Join(temp, "alone", m.file)
	if err := os.MkdirAll(filepath.Dir(broken), 0o700); err != nil {
		return false, err
	}
	if err := os.WriteFile(broken, slices.Concat(src[:m.from], []byte(m.text), src[m.to:]), 0o600); err != nil {
		return false, err
	}
	overlay := filepath.Join(temp, "alone.json")
	if err := writeOverlay(overlay, map[string]string{path: broken}); err != nil {
		return false, err
	}
	out, err := goCommand("test", "-c", "-overlay", overlay, "-o", binary, "./"+from)
	if err != nil && !bytes.Contains(out, []byte(m.file)) {
		return false, errors.Join(fmt.Errorf("build the tests of %s with %v: %w", from, m, err), errors.New(string(out)))
	}
	return err == nil, nil
}
