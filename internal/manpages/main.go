// Command manpages writes the manual pages of vhdxfs into a directory. Packages are built with it.
package main

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cpuguy83/go-md2man/v2/md2man"

	"github.com/vhdxfs/vhdxfs/internal/cli"
)

// sections holds what the pages have beyond the help of the program.
//
//go:embed sections
var sections embed.FS

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: manpages DIRECTORY")
		os.Exit(1)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "manpages:", err)
		os.Exit(1)
	}
}

// write writes one file for each page into dir.
func write(dir string) error {
	pages, err := cli.Manual(section)
	if err != nil {
		return err
	}
	for _, p := range pages {
		if err := os.WriteFile(filepath.Join(dir, p.Name+".8"), md2man.Render([]byte(p.Text)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func section(page string) (string, error) {
	text, err := sections.ReadFile("sections/" + page + ".md")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}
