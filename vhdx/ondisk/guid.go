package ondisk

import "github.com/google/uuid"

// GUIDSize is the length in bytes of a GUID in the file.
const GUIDSize = 16

// GUID decodes the GUID in the first GUIDSize bytes of b.
func GUID(b []byte) uuid.UUID {
	return swapped(uuid.UUID(b[:GUIDSize]))
}

// PutGUID stores g in the first GUIDSize bytes of b.
func PutGUID(b []byte, g uuid.UUID) {
	g = swapped(g)
	copy(b[:GUIDSize], g[:])
}

// swapped turns Windows order into the order of uuid.UUID, and back.
func swapped(g uuid.UUID) uuid.UUID {
	g[0], g[1], g[2], g[3] = g[3], g[2], g[1], g[0]
	g[4], g[5] = g[5], g[4]
	g[6], g[7] = g[7], g[6]
	return g
}
