package test

import (
	"bytes"
	"os"
	"testing"
)

// TestLinked looks in the program for functions that nothing in it needs. Every mount reads the program from the disk, in
// the worst case, and that is half of the time that it takes.
func TestLinked(t *testing.T) {
	file, err := os.ReadFile(program.path(t))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(file, []byte("/internal/cli.Run")) {
		t.Fatal("the program does not tell the names of its functions")
	}
	for name, why := range map[string]string{
		"text/template.(*Template).Execute": "with it the linker keeps every exported method; a template of cobra's calls it",
	} {
		if bytes.Contains(file, []byte(name)) {
			t.Errorf("the program holds %s: %s", name, why)
		}
	}
}
