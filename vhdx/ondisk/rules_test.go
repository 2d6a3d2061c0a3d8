package ondisk

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
)

// ruleNames returns the names of the rules in the code, in order.
func ruleNames(t *testing.T) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "rules.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(v.Names[0].Name, "Rule") {
			names = append(names, v.Names[0].Name)
		}
		return true
	})
	return names
}

// The page about the format lists every rule as the code has it, and no other.
func TestRulesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/format.md")
	if err != nil {
		t.Fatal(err)
	}
	names := ruleNames(t)
	var want []string
	for r := range Rules {
		if len(names) < r.Number() {
			t.Fatalf("rule %v has no name", r)
		}
		want = append(want, fmt.Sprintf("| %s | `%s` | %s | %s |", r.Name(), names[r.Number()-1], r.Section(), r.Text()))
	}
	if len(want) != len(names) {
		t.Errorf("%d rules, %d names", len(want), len(names))
	}
	var got []string
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "| R") && strings.Contains(line, "| `Rule") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Errorf("docs/format.md lacks the line\n%s", want[i])
		case i >= len(want):
			t.Errorf("docs/format.md has a rule too many:\n%s", got[i])
		case got[i] != want[i]:
			t.Errorf("docs/format.md has\n%s\nwant\n%s", got[i], want[i])
		}
	}
}
