package journal

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// headerRegion returns where the header at file offset off says the log is.
func headerRegion(b []byte, off int) Region {
	return Region{
		Offset: int64(le.Uint64(b[off+72:])),
		Length: int64(le.Uint32(b[off+68:])),
		GUID:   ondisk.GUID(b[off+48:]),
	}
}

// Dirty images that other programs wrote, against what a decoder that is not ours says of their logs.
func TestCorpusLogs(t *testing.T) {
	dir := os.Getenv("VHDXFS_CORPUS")
	if dir == "" {
		t.Skip("needs VHDXFS_CORPUS, a directory of images that other programs wrote")
	}
	text, err := os.ReadFile(filepath.Join(dir, "MANIFEST.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Files []struct {
			File, Name    string
			CurrentHeader int `json:"current_header"`
			Log           *struct {
				Valid       int    `json:"valid_entries"`
				Active      int    `json:"active_sequence_entries"`
				FirstSeq    uint64 `json:"first_seq"`
				LastSeq     uint64 `json:"last_seq"`
				Flushed     uint64 `json:"flushed_file_offset"`
				Last        uint64 `json:"last_file_offset"`
				Descriptors struct{ Data, Zero int64 }
			}
		}
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, f := range manifest.Files {
		if f.Log == nil {
			continue
		}
		tried++
		t.Run(f.Name, func(t *testing.T) {
			b, err := exec.Command("xz", "-dc", filepath.Join(dir, f.File)).Output()
			if err != nil {
				t.Skipf("needs xz: %v", err)
			}
			reg := headerRegion(b, f.CurrentHeader<<16)
			entries, err := scan(newRingReader(bytes.NewReader(b), reg))
			if err != nil || len(entries) != f.Log.Valid {
				t.Errorf("%d valid entries, %v; want %d", len(entries), err, f.Log.Valid)
			}
			s, err := Find(bytes.NewReader(b), reg)
			if err != nil {
				t.Fatal(err)
			}
			if s.Entries != f.Log.Active || s.SequenceNumber != f.Log.LastSeq ||
				s.entries[0].sequenceNumber != f.Log.FirstSeq {
				t.Errorf("active are the %d entries from %d to %d, want %d from %d to %d", s.Entries,
					s.entries[0].sequenceNumber, s.SequenceNumber, f.Log.Active, f.Log.FirstSeq, f.Log.LastSeq)
			}
			if want := f.Log.Descriptors.Data + f.Log.Descriptors.Zero; s.Updates != want {
				t.Errorf("%d updates, want %d", s.Updates, want)
			}
			if s.FlushedFileOffset != f.Log.Flushed || s.LastFileOffset != f.Log.Last {
				t.Errorf("FlushedFileOffset %d and LastFileOffset %d, want %d and %d",
					s.FlushedFileOffset, s.LastFileOffset, f.Log.Flushed, f.Log.Last)
			}
			if err := s.Check(int64(len(b))); err != nil {
				t.Error(err)
			}
		})
	}
	if tried == 0 {
		t.Error("no dirty image among those of the corpus")
	}
}

// QEMU puts each update in place at once and leaves its entries in the log. Replaying the last one must find
// every page as QEMU left it.
func TestEntriesOfQEMU(t *testing.T) {
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	path := filepath.Join(t.TempDir(), "disk.vhdx")
	for _, args := range [][]string{
		{"qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "8G"},
		{"qemu-io", "-f", "vhdx", "-c", "write -P 1 0 5M", "-c", "write -P 2 3G 64k", "-c", "write -P 3 7G 3M", path},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	reg := headerRegion(b, 64<<10)
	// QEMU begins a session for each update and numbers its entries on, so only the last entry says what is
	// in the file now.
	var s *Sequence
	for pos := int64(0); pos < reg.Length; pos += SectorSize {
		e := b[reg.Offset+pos:]
		if string(e[:4]) != "loge" {
			continue
		}
		reg.GUID = ondisk.GUID(e[32:])
		s2, err := Find(bytes.NewReader(b), reg)
		if err != nil {
			t.Fatalf("entry at position %#x: %v", pos, err)
		}
		if s == nil || s2.SequenceNumber > s.SequenceNumber {
			s = s2
		}
	}
	if s == nil {
		t.Fatal("QEMU left no entry in the log")
	}
	t.Logf("%d entries with %d updates", s.Entries, s.Updates)
	v, err := NewOverlay(bytes.NewReader(b), int64(len(b)), s)
	if err != nil {
		t.Fatal(err)
	}
	if s.Updates == 0 || !v.Overlaps(0, int64(len(b))) {
		t.Error("the log holds no update")
	}
	got := make([]byte, len(b))
	if _, err := v.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if v.Size() != int64(len(b)) || !bytes.Equal(got, b) {
		t.Error("the log does not say what QEMU did")
	}
}
