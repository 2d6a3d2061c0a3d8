package filetree

import (
	"os"
	"testing"
)

// What is free is what is missing when a file takes space.
func TestFree(t *testing.T) {
	for _, name := range []string{"FAT16", "NTFS"} {
		t.Run(name, func(t *testing.T) {
			b := builders[name]
			free := func(dir string) int64 {
				t.Helper()
				path := b.build(t, dir)
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				st, _ := f.Stat()
				n, err := Free(f, st.Size(), b.kind)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/a", make([]byte, 1), 0o600); err != nil {
				t.Fatal(err)
			}
			before := free(dir)
			b2 := make([]byte, 20<<20)
			for i := range b2 {
				b2[i] = byte(i*i>>8) | 1
			}
			if err := os.WriteFile(dir+"/a", b2, 0o600); err != nil {
				t.Fatal(err)
			}
			if after := free(dir); before < 60<<20 || before > 100<<20 || before-after < 20<<20-64<<10 || before-after > 20<<20+64<<10 {
				t.Errorf("free: %d bytes, then %d with a file of 20 MiB", before, after)
			}
		})
	}
}
