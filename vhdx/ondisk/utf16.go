package ondisk

import (
	"errors"
	"slices"
	"unicode/utf16"

	"github.com/vhdxfs/vhdxfs/internal/utf16text"
)

// decodeUTF16 decodes UTF-16LE, whose length in bytes is even. It refuses what is no UTF-16, and NULs.
func decodeUTF16(b []byte) (string, error) {
	units := utf16Units(b)
	if slices.Contains(units, 0) {
		return "", errors.New("it contains a NUL")
	}
	// The decoder replaces half surrogates, so what it cannot decode does not come back.
	runes := utf16.Decode(units)
	if !slices.Equal(utf16.Encode(runes), units) {
		return "", errors.New("invalid UTF-16")
	}
	return string(runes), nil
}

// DecodeCreator decodes the Creator field (MS-VHDX 2.2.1) as well as it goes: it is for people only.
func DecodeCreator(b []byte) string {
	return utf16text.UpToZero(b, LE)
}

// EncodeUTF16 returns s in UTF-16LE, without a NUL behind it.
func EncodeUTF16(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = LE.AppendUint16(b, u)
	}
	return b
}

func utf16Units(b []byte) []uint16 {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = LE.Uint16(b[2*i:])
	}
	return units
}
