package test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The corpus is a directory of images that other programs wrote, and a manifest that says what is in each.
type (
	corpus struct {
		dir   string
		Files []corpusImage `json:"files"`
	}
	corpusImage struct {
		File             string           `json:"file"` // compressed by xz
		Name             string           `json:"name"`
		SHA256           string           `json:"file_sha256"`
		Creator          string           `json:"creator"`
		Type             string           `json:"type"`
		LogicalSector    int64            `json:"logical_sector"`
		PhysicalSector   int64            `json:"physical_sector"`
		BlockSize        int64            `json:"block_size"`
		VirtualSize      int64            `json:"virtual_size"`
		DataWriteGUID    string           `json:"data_write_guid"`
		LogGUID          string           `json:"log_guid"` // "zero" or "dirty"
		PayloadBlocks    map[string]int64 `json:"payload_bat_histogram"`
		Locator          [][2]string      `json:"parent_locator"` // key and value
		Content          string           `json:"disk_content"`
		Raw              rawDigest        `json:"expected_raw"`
		PlaceAs          string           `json:"place_as"` // of a parent
		RawOfChildOnThis *rawDigest       `json:"expected_raw_of_child_on_this_parent"`
	}
	rawDigest struct {
		SHA256 string `json:"sha256"`
		Sparse string `json:"sparse_digest"`
		Size   int64  `json:"size"`
	}
)

// wholeDigestLimit is up to which size in bytes a disk is read whole, holes too.
const wholeDigestLimit = 1 << 30

// openCorpus reads the manifest, and skips the test where there is no corpus.
func openCorpus(t *testing.T) *corpus {
	t.Helper()
	dir := os.Getenv("VHDXFS_CORPUS")
	if dir == "" {
		t.Skip("needs VHDXFS_CORPUS, a directory of images that other programs wrote")
	}
	text, err := os.ReadFile(filepath.Join(dir, "MANIFEST.json"))
	if err != nil {
		t.Fatal(err)
	}
	c := &corpus{dir: dir}
	if err := json.Unmarshal(text, c); err != nil {
		t.Fatal(err)
	}
	if len(c.Files) == 0 {
		t.Fatal("the manifest lists no image")
	}
	return c
}

// unpack unpacks an image into a directory under that name and returns its path.
func (c *corpus) unpack(t *testing.T, ci corpusImage, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	unpack(t, filepath.Join(c.dir, ci.File), path)
	if got := sha256File(t, path); got != ci.SHA256 {
		t.Fatalf("%s unpacks to SHA-256 %s, want %s", ci.File, got, ci.SHA256)
	}
	return path
}

// child returns the differencing image and the parent made for it, and skips the test where they are not there.
func (c *corpus) child(t *testing.T) (child, parent corpusImage) {
	t.Helper()
	c1 := slices.IndexFunc(c.Files, func(ci corpusImage) bool { return ci.Type == "differencing" })
	p1 := slices.IndexFunc(c.Files, func(ci corpusImage) bool { return ci.RawOfChildOnThis != nil })
	if c1 < 0 || p1 < 0 {
		t.Skip("needs a differencing image and its parent in the corpus")
	}
	return c.Files[c1], c.Files[p1]
}

// parentName returns the name that the child's locator gives to its parent in the same directory.
func (ci corpusImage) parentName(t *testing.T) string {
	t.Helper()
	for _, kv := range ci.Locator {
		if name, ok := strings.CutPrefix(kv[1], `.\`); ok && kv[0] == "relative_path" {
			return name
		}
	}
	t.Fatalf("%s: no relative path to its parent in the manifest", ci.Name)
	return ""
}

// holds fails the test unless the file holds what d says.
func (d rawDigest) holds(t *testing.T, path string) {
	t.Helper()
	f := open(t, path)
	defer f.Close()
	if got := sizeOf(t, f); got != d.Size {
		t.Errorf("the disk has %d bytes, want %d", got, d.Size)
	}
	got, data := sparseDigest(t, path)
	if got != d.Sparse {
		t.Errorf("sparse digest %s, want %s", got, d.Sparse)
	}
	t.Logf("%d of %d bytes are data", data, d.Size)
	if d.Size > wholeDigestLimit {
		return
	}
	if got, err := sha256Of(f); err != nil || got != d.SHA256 {
		t.Errorf("SHA-256 %s, %v, want %s", got, err, d.SHA256)
	}
}

// unpackChain unpacks an image, beside its parent if it has one, and returns its path and what its disk is. The test's end
// finds the parent unchanged.
func (c *corpus) unpackChain(t *testing.T, ci corpusImage) (img string, want rawDigest) {
	t.Helper()
	dir := t.TempDir()
	img = c.unpack(t, ci, dir, ci.Name)
	if ci.Type != "differencing" {
		return img, ci.Raw
	}
	_, parent := c.child(t)
	path := c.unpack(t, parent, dir, ci.parentName(t))
	t.Cleanup(func() { unchanged(t, path, parent.SHA256) })
	return img, *parent.RawOfChildOnThis
}

func TestCorpusReadsAsExpected(t *testing.T) {
	t.Parallel()
	c := openCorpus(t)
	for _, ci := range c.Files {
		t.Run(ci.Name, func(t *testing.T) {
			img, want := c.unpackChain(t, ci)
			defer unchanged(t, img, ci.SHA256)
			s := readOnly(t, img)
			want.holds(t, s.disk)
			s.end(t)
		})
	}
}

// A mount that could write, and is only read, changes nothing either, unless there is a log to replay.
func TestCorpusReadWriteMountChangesNothingByItself(t *testing.T) {
	t.Parallel()
	c := openCorpus(t)
	for _, ci := range c.Files {
		if ci.LogGUID == "dirty" {
			continue
		}
		t.Run(ci.Name, func(t *testing.T) {
			dir, want := t.TempDir(), ci.Raw
			img := c.unpack(t, ci, dir, ci.Name)
			if ci.Type == "differencing" {
				_, parent := c.child(t)
				path := c.unpack(t, parent, dir, ci.parentName(t))
				want = *parent.RawOfChildOnThis
				defer unchanged(t, path, parent.SHA256)
			}
			defer unchanged(t, img, ci.SHA256)
			s := serve(t, img)
			if got, _ := sparseDigest(t, s.disk); got != want.Sparse {
				t.Errorf("sparse digest %s, want %s", got, want.Sparse)
			}
			s.end(t)
		})
	}
}

// Replaying the log into the file gives the same disk as replaying it in memory, keeps the DataWriteGuid, by which
// children know their parent, and leaves a file that needs no replay.
func TestCorpusReadWriteMountReplaysTheLog(t *testing.T) {
	t.Parallel()
	c := openCorpus(t)
	for _, ci := range c.Files {
		if ci.LogGUID != "dirty" {
			continue
		}
		t.Run(ci.Name, func(t *testing.T) {
			requireTools(t, "qemu-img")
			img := c.unpack(t, ci, t.TempDir(), ci.Name)
			s := serve(t, img)
			ci.Raw.holds(t, s.disk)
			s.end(t)
			i := info(t, img)
			if h := i.Headers[i.CurrentHeader-1]; i.Log.State != "clean" || !strings.EqualFold(h.DataWriteGUID, ci.DataWriteGUID) {
				t.Errorf("afterwards the log is %s, the DataWriteGuid %s, want clean and %s", i.Log.State, h.DataWriteGUID, ci.DataWriteGUID)
			}
			must(t, "qemu-img", "check", "-f", "vhdx", img)
			ci.Raw.holds(t, qemuRaw(t, img))
		})
	}
}

// unchanged fails the test if an image no longer has its digest.
func unchanged(t *testing.T, path, want string) {
	t.Helper()
	if got := sha256File(t, path); got != want {
		t.Errorf("%s was changed: SHA-256 %s, was %s", path, got, want)
	}
}

func TestCorpusFindsTheParentByOption(t *testing.T) {
	t.Parallel()
	c := openCorpus(t)
	child, parent := c.child(t)
	img := c.unpack(t, child, t.TempDir(), child.Name)
	elsewhere := t.TempDir()
	named := c.unpack(t, parent, elsewhere, "renamed, with a comma.vhdx")
	placed := c.unpack(t, parent, elsewhere, child.parentName(t))
	for _, tc := range []struct{ name, option string }{
		{"parent", "parent=" + placed},
		{"parent, another name", `parent="` + named + `"`},
		{"parent_dir", "parent_dir=" + elsewhere},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := readOnly(t, img, tc.option)
			parent.RawOfChildOnThis.holds(t, s.disk)
		})
	}
}

func TestCorpusRefusesTheChildWithoutItsParent(t *testing.T) {
	t.Parallel()
	c := openCorpus(t)
	child, parent := c.child(t)
	dir := t.TempDir()
	img := c.unpack(t, child, dir, child.Name)
	placed := filepath.Join(dir, child.parentName(t))

	r := vhdxfs(t, "-f", img, newDir(t))
	if r.status == 0 || !strings.Contains(r.stderr, "parent "+filepath.Base(placed)+" not found") {
		t.Errorf("no parent: exit status %d; the message must name %s:\n%s", r.status, filepath.Base(placed), r.stderr)
	}

	// Any other image in the parent's place has another DataWriteGuid.
	i := slices.IndexFunc(c.Files, func(ci corpusImage) bool { return ci.Type == "dynamic" && ci.Name != parent.Name })
	other := c.Files[i]
	c.unpack(t, other, dir, filepath.Base(placed))
	r = vhdxfs(t, "-f", img, newDir(t))
	if guid := other.DataWriteGUID; r.status == 0 || !strings.Contains(strings.ToLower(r.stderr), strings.ToLower(guid)) {
		t.Errorf("wrong parent: exit status %d; the message must give its GUID %s:\n%s", r.status, guid, r.stderr)
	}
}

// contentOf matches a partition in the manifest: its number, first sector and what it holds.
var contentOf = regexp.MustCompile(`(?:MBR|GPT)(\d+)@(\d+)(?: type \w+)?:(\w+)`)

func TestCorpusFileSystemsMount(t *testing.T) {
	t.Parallel()
	c := openCorpus(t)
	for _, ci := range c.Files {
		for _, m := range contentOf.FindAllStringSubmatch(ci.Content, -1) {
			fstype := strings.ToLower(m[3])
			if fstype == "none" {
				continue // a partition that was never formatted
			}
			t.Run(ci.Name+"/"+fstype, func(t *testing.T) {
				requireLoop(t)
				img := c.unpack(t, ci, t.TempDir(), ci.Name)
				number, _ := strconv.Atoi(m[1])
				first, _ := strconv.ParseInt(m[2], 10, 64)
				s := readOnly(t, img)
				dev := attach(t, s.disk, ci.LogicalSector)
				dir := mountInside(t, partition(t, dev, number, ci.LogicalSector, first), fstype)
				tree := readTree(t, dir)
				entries, err := os.ReadDir(dir)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%s: %d files, %d entries at the top", fstype, len(tree), len(entries))
				unchanged(t, img, ci.SHA256)
			})
		}
	}
}

func TestCorpusInfoAgreesWithTheManifest(t *testing.T) {
	t.Parallel()
	c := openCorpus(t)
	for _, ci := range c.Files {
		t.Run(ci.Name, func(t *testing.T) {
			dir := t.TempDir()
			img := c.unpack(t, ci, dir, ci.Name)
			if ci.Type == "differencing" {
				_, parent := c.child(t)
				c.unpack(t, parent, dir, ci.parentName(t))
			}
			got := info(t, img)
			if got.Creator != ci.Creator || got.Type != ci.Type || got.DiskSize != ci.VirtualSize ||
				got.BlockSize != ci.BlockSize || got.LogicalSectorSize != ci.LogicalSector ||
				ci.PhysicalSector != 0 && got.PhysicalSectorSize != ci.PhysicalSector {
				t.Errorf("info %+v, want %+v", got, ci)
			}
			if h := got.Headers[got.CurrentHeader-1]; !strings.EqualFold(h.DataWriteGUID, ci.DataWriteGUID) {
				t.Errorf("DataWriteGuid %s, want %s", h.DataWriteGUID, ci.DataWriteGUID)
			}
			if dirty := got.Log.State != "clean"; dirty != (ci.LogGUID == "dirty") {
				t.Errorf("log state %q, want LogGuid %s", got.Log.State, ci.LogGUID)
			}
			blocks := maps.Clone(got.Blocks)
			maps.DeleteFunc(blocks, func(state string, n int64) bool { return n == 0 || state == "sector_bitmaps" })
			want := map[string]int64{}
			for state, n := range ci.PayloadBlocks {
				want[strings.ToLower(state)] = n
			}
			if !maps.Equal(blocks, want) {
				t.Errorf("blocks %v, want %v", blocks, want)
			}
		})
	}
}

func TestCorpusIsSound(t *testing.T) {
	t.Parallel()
	c := openCorpus(t)
	for _, ci := range c.Files {
		t.Run(ci.Name, func(t *testing.T) {
			dir := t.TempDir()
			img := c.unpack(t, ci, dir, ci.Name)
			if ci.Type == "differencing" {
				_, parent := c.child(t)
				c.unpack(t, parent, dir, ci.parentName(t))
			}
			r := vhdxfs(t, "check", "--json", img)
			var report struct {
				Errors []struct{ Rule, Message string }
			}
			if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
				t.Fatalf("check --json: %v\n%s%s", err, r.stdout, r.stderr)
			}
			if len(report.Errors) > 0 {
				t.Errorf("check finds errors: %+v", report.Errors)
			}
			unchanged(t, img, ci.SHA256)
		})
	}
}

func TestCorpusManifestIsComplete(t *testing.T) {
	c := openCorpus(t)
	listed := map[string]bool{}
	for _, ci := range c.Files {
		listed[ci.File] = true
		if ci.Raw.Sparse == "" || ci.Raw.Size == 0 || ci.SHA256 == "" {
			t.Errorf("%s: the manifest lacks a digest or the size", ci.Name)
		}
		if _, err := os.Stat(filepath.Join(c.dir, ci.File)); errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is listed but not there", ci.File)
		}
	}
	found, _ := filepath.Glob(filepath.Join(c.dir, "*.xz"))
	for _, path := range found {
		if !listed[filepath.Base(path)] {
			t.Errorf("%s is there but not listed", path)
		}
	}
}
