package ondisk

import (
	"bytes"
	"testing"

	"github.com/google/uuid"
)

// The values stand in every list of test vectors for CRC-32C; none is derived from our code.
func TestChecksumVectors(t *testing.T) {
	rising := make([]byte, 32)
	for i := range rising {
		rising[i] = byte(i)
	}
	for _, c := range []struct {
		name string
		in   []byte
		want uint32
	}{
		{"digits", []byte("123456789"), 0xE3069283},
		{"32 zeros", make([]byte, 32), 0x8A9136AA},
		{"32 ones", bytes.Repeat([]byte{0xFF}, 32), 0x62A8AB43},
		{"rising", rising, 0x46DD794E},
		{"4096 zeros", make([]byte, 4096), 0x98F94189},
		{"65536 zeros", make([]byte, 65536), 0x72C0C4A4},
	} {
		if got := Update(0, c.in); got != c.want {
			t.Errorf("%s: CRC-32C = %08X, want %08X", c.name, got, c.want)
		}
	}
}

func TestChecksumTakesItsFieldAsZero(t *testing.T) {
	b := make([]byte, 4096)
	copy(b[4:], []byte{1, 2, 3, 4})
	if got := Checksum(b, 4); got != 0x98F94189 {
		t.Errorf("Checksum = %08X, want that of 4096 zeros", got)
	}
	b[8] = 1
	if got := Checksum(b, 4); got == 0x98F94189 {
		t.Error("Checksum does not see a change behind its field")
	}
	b[8], b[0] = 0, 1
	if got := Checksum(b, 4); got == 0x98F94189 {
		t.Error("Checksum does not see a change before its field")
	}
}

func TestGUIDWindowsOrder(t *testing.T) {
	want := uuid.MustParse("2DC27766-F623-4200-9D64-115E9BFD4A08") // BAT region, MS-VHDX 2.2.3.2
	disk := []byte{0x66, 0x77, 0xC2, 0x2D, 0x23, 0xF6, 0x00, 0x42, 0x9D, 0x64, 0x11, 0x5E, 0x9B, 0xFD, 0x4A, 0x08}
	if got := GUID(disk); got != want {
		t.Errorf("GUID = %v, want %v", got, want)
	}
	b := make([]byte, GUIDSize)
	PutGUID(b, want)
	if !bytes.Equal(b, disk) {
		t.Errorf("PutGUID = % X, want % X", b, disk)
	}
}
