package partition

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// Every partition is where sfdisk says it is.
func TestGet(t *testing.T) {
	const size = 400 * mib
	for name, table := range map[string]string{
		"gpt":     "label: gpt\nsize=100MiB\nsize=50MiB\nsize=33KiB\n",
		"gpt gap": "label: gpt\n1: size=10MiB\n7: size=50MiB\n",
		"mbr":     "label: dos\nsize=100MiB\nsize=50MiB, bootable\n",
		"logical": "label: dos\n1: size=30MiB\n2: size=300MiB, type=5\n3: size=10MiB\n5: size=20MiB\n6: size=100MiB\n7: size=10MiB\n",
		"lba":     "label: dos\n2: size=300MiB, type=f\n5: size=10MiB\n6: size=20MiB\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := raw(t, size, table, "sfdisk", "-q")
			out, err := exec.Command("sfdisk", "--json", f.Name()).Output()
			if err != nil {
				t.Fatal(err)
			}
			var want struct {
				PartitionTable struct {
					Partitions []struct {
						Node, Type  string
						Start, Size int64
					}
				}
			}
			if err := json.Unmarshal(out, &want); err != nil {
				t.Fatal(err)
			}
			found := 0
			for _, w := range want.PartitionTable.Partitions {
				if w.Type == "5" || w.Type == "f" {
					continue
				}
				var n int
				fmt.Sscan(strings.TrimPrefix(w.Node, f.Name()), &n)
				p, err := Get(f, size, 512, n)
				if err != nil || p != (Partition{n, w.Start * 512, w.Size * 512}) {
					t.Errorf("partition %d: %+v, %v; sfdisk has it at sector %d with %d", n, p, err, w.Start, w.Size)
				}
				found++
			}
			if found < 2 {
				t.Fatalf("sfdisk made %d partitions:\n%s", found, out)
			}
			if _, err := Get(f, size, 512, 99); err == nil || !strings.Contains(err.Error(), "no partition 99; it has ") {
				t.Errorf("partition 99: %v", err)
			}
		})
	}
}

// What is no partition, or does not lie inside the disk, is refused for any table; and the search ends for
// every table, even if its links form a cycle.
func TestGetRefuses(t *testing.T) {
	const sectors = 8192
	entry := func(b []byte, i int, kind byte, first, n uint32) {
		e := b[446+16*i:]
		e[4] = kind
		le.PutUint32(e[8:], first)
		le.PutUint32(e[12:], n)
	}
	sign := func(b []byte, at ...int) {
		for _, s := range at {
			copy(b[s*512+510:], mbrSignature)
		}
	}
	for name, tc := range map[string]struct {
		n    int
		make func(b []byte)
		says string
	}{
		"nothing":        {1, func([]byte) {}, "no partition table"},
		"empty":          {1, func(b []byte) { sign(b, 0) }, "is empty"},
		"code":           {1, func(b []byte) { sign(b, 0); entry(b, 0, 7, 1, 10); b[446+32] = 1 }, "no partition table"},
		"end":            {1, func(b []byte) { sign(b, 0); entry(b, 0, 7, 1, sectors) }, "ends beyond the end of the disk"},
		"begin":          {1, func(b []byte) { sign(b, 0); entry(b, 0, 7, sectors, 1) }, "ends beyond the end of the disk"},
		"far":            {1, func(b []byte) { sign(b, 0); entry(b, 0, 7, 1<<32-1, 1<<32-1) }, "ends beyond the end of the disk"},
		"extended":       {1, func(b []byte) { sign(b, 0, 10); entry(b, 0, 5, 10, 100); entry(b, 1, 7, 200, 10) }, "no partition 1; it has 2"},
		"no link":        {5, func(b []byte) { sign(b, 0); entry(b, 0, 5, 10, 100) }, "damaged"},
		"link outside":   {5, func(b []byte) { sign(b, 0); entry(b, 0, 5, 1<<31, 100) }, "beyond the end"},
		"loop":           {9, func(b []byte) { sign(b, 0, 10); entry(b, 0, 5, 10, 100); entry(b[5120:], 1, 5, 0, 1) }, "is empty"},
		"protective":     {1, func(b []byte) { sign(b, 0); entry(b, 0, protective, 1, sectors-1) }, "no GPT"},
		"NTFS":           {1, func(b []byte) { sign(b, 0); copy(b[3:], "NTFS    "); entry(b, 0, 7, 1, 10) }, "all of it is an NTFS"},
		"logical beyond": {5, func(b []byte) { sign(b, 0, 10); entry(b, 0, 5, 10, 100); entry(b[5120:], 0, 7, 1<<32-1, 1) }, "ends beyond the end of the disk"},
	} {
		t.Run(name, func(t *testing.T) {
			b := make([]byte, sectors*512)
			tc.make(b)
			if p, err := Get(bytes.NewReader(b), int64(len(b)), 512, tc.n); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%+v, %v; want an error with %q", p, err, tc.says)
			}
		})
	}
	if _, err := Get(bytes.NewReader(nil), 0, 512, 1); err == nil {
		t.Error("a disk without a byte has a partition")
	}
}

// A GPT may say that a partition is anywhere.
func TestGetBadGPT(t *testing.T) {
	const size = 200 * mib
	for name, spans := range map[string][2]uint64{
		"beyond": {2048, size/512 + 1}, "backwards": {4096, 2048}, "huge": {1 << 63, 1<<64 - 1}, "all": {0, 1<<64 - 1},
	} {
		f := raw(t, size, partitions, "sfdisk", "-q")
		g, err := readGPT(f, size, 512)
		if err != nil {
			t.Fatal(err)
		}
		le.PutUint64(g.entries[32:], spans[0])
		le.PutUint64(g.entries[40:], spans[1])
		for _, p := range g.list() {
			if p.Number == 1 && p.Off >= 0 && p.Len > 0 && p.Off+p.Len > p.Off && p.Off+p.Len <= size {
				t.Errorf("%s: %+v", name, p)
			}
		}
	}
}
