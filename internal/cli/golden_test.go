package cli

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the agreed texts in testdata")

// Help and manual are what testdata says. To agree on other texts, run go test ./internal/cli -run Golden -update and read
// what git diff shows.
func TestGolden(t *testing.T) {
	texts := map[string]string{}
	for _, topic := range append(commandNames(newRoot(nil)), "options", "exit-status") {
		texts["help/"+topic+".txt"] = mustRun(t, "help", topic)
	}
	texts["help/vhdxfs.txt"] = mustRun(t, "help")
	pages, err := Manual(func(string) (string, error) { return "", nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		_, text, _ := strings.Cut(p.Text, "\n\n") // the first line has the day of the build
		texts["man/"+p.Name+".md"] = text
	}
	const dir = "testdata/golden"
	if *update {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		for name, text := range texts {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%v; agree on it with -update", err)
			continue
		}
		if got := texts[name]; got != string(want) {
			t.Errorf("%s differs from the agreed text; if that is meant, run this test with -update\n%s", name, firstDifference(got, string(want)))
		}
	}
	agreed, err := filepath.Glob(dir + "/*/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range agreed {
		if name, _ := filepath.Rel(dir, path); texts[name] == "" {
			t.Errorf("%s is no longer made; remove it with -update", name)
		}
	}
}

// firstDifference shows the first lines that differ.
func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return "got:  " + g[i] + "\nwant: " + w[i]
		}
	}
	return "one of them ends early"
}
