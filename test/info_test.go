package test

import (
	"encoding/json"
	"testing"
)

// imageInfo is what the tests look at of what `vhdxfs info --json` prints.
type imageInfo struct {
	Path               string           `json:"path"`
	FileSize           int64            `json:"file_size"`
	Creator            string           `json:"creator"`
	Type               string           `json:"type"`
	DiskSize           int64            `json:"disk_size"`
	DiskID             string           `json:"disk_id"`
	BlockSize          int64            `json:"block_size"`
	LogicalSectorSize  int64            `json:"logical_sector_size"`
	PhysicalSectorSize int64            `json:"physical_sector_size"`
	CurrentHeader      int              `json:"current_header"`
	Headers            [2]headerInfo    `json:"headers"`
	Log                logInfo          `json:"log"`
	Blocks             map[string]int64 `json:"blocks"`
	AllocatedBytes     int64            `json:"allocated_bytes"`
}

type headerInfo struct {
	Valid         bool   `json:"valid"`
	DataWriteGUID string `json:"data_write_guid"`
}

type logInfo struct {
	State  string `json:"state"`
	Length int64  `json:"length"`
}

// info returns what the program says of an image.
func info(t *testing.T, img string) imageInfo {
	t.Helper()
	var i imageInfo
	text := mustVhdxfs(t, "info", "--json", img)
	if err := json.Unmarshal([]byte(text), &i); err != nil {
		t.Fatalf("info --json: %v\n%s", err, text)
	}
	if i.CurrentHeader != 1 && i.CurrentHeader != 2 {
		t.Fatalf("info --json: current_header is %d\n%s", i.CurrentHeader, text)
	}
	return i
}
