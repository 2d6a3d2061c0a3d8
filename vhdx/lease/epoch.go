package lease

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// An Epoch is what the FileWriteGuid of a writer with a lease tells: who it is, and since when it is in. It is a UUID of version
// 8 (RFC 9562), whose 122 bits are, from the highest:
//
//	32  seconds since 1970, by the writer's clock
//	43  name of its host, eight characters at the most
//	 1  released: the writer is not in any more
//	46  random
//
// Nothing is decided by time and name, which are for people.
type Epoch struct {
	Host     string // as far as there is room
	Since    time.Time
	Released bool
}

const (
	hostChars  = 8
	hostBits   = 43
	randomBits = 46
	alphabet   = "\x00abcdefghijklmnopqrstuvwxyz0123456789-~" // 39 characters, of which 8 fit into 43 bits
)

// newGUID returns a GUID for the epoch, another one each time.
func (e Epoch) newGUID() uuid.UUID {
	var random [8]byte
	_, _ = rand.Read(random[:]) // it never fails
	host := encodeHost(e.Host)
	var low uint64 // the lowest 64 of the 122 bits, from the bits of host that are left
	low = host<<(randomBits+1) | binary.BigEndian.Uint64(random[:])&(1<<randomBits-1)
	if e.Released {
		low |= 1 << randomBits
	}
	high := uint64(uint32(e.Since.Unix()))<<(58-32) | host>>(64-randomBits-1) // #nosec G115 -- of the time, 32 bits are kept
	return join(high, low)
}

// join puts 58 and 64 bits into a UUID, around its version and variant.
func join(high, low uint64) uuid.UUID {
	var u uuid.UUID
	binary.BigEndian.PutUint64(u[:8], high<<6|low>>58) // all 64 that stand before the variant
	a := binary.BigEndian.Uint64(u[:8])                // 48 bits, and 12 behind the version: 4 more are left over
	top, mid, rest := a>>16, a>>4&0xfff, a&0xf
	binary.BigEndian.PutUint64(u[:8], top<<16|8<<12|mid)
	binary.BigEndian.PutUint64(u[8:], 2<<62|rest<<58|low&(1<<58-1))
	return u
}

// split is the inverse of join.
func split(u uuid.UUID) (high, low uint64) {
	a, b := binary.BigEndian.Uint64(u[:8]), binary.BigEndian.Uint64(u[8:])
	all := a>>16<<16 | a&0xfff<<4 | b>>58&0xf
	return all >> 6, all&0x3f<<58 | b&(1<<58-1)
}

// EpochOf returns the epoch that a FileWriteGuid tells of, and false where it tells of none.
func EpochOf(u uuid.UUID) (Epoch, bool) {
	if u.Version() != 8 || u.Variant() != uuid.RFC4122 {
		return Epoch{}, false
	}
	high, low := split(u)
	host := high<<(64-randomBits-1)&(1<<hostBits-1) | low>>(randomBits+1)
	name, ok := decodeHost(host)
	return Epoch{Host: name, Since: time.Unix(int64(high>>(58-32)), 0), Released: low>>randomBits&1 == 1}, ok // #nosec G115 -- 32 bits
}

// Held returns the GUID of the same epoch that says that the writer is in, and u itself where it tells of no epoch.
func Held(u uuid.UUID) uuid.UUID { return marked(u, 0) }

// Released returns the GUID of the same epoch that says that the writer is not in any more, and u itself where it tells of none.
func Released(u uuid.UUID) uuid.UUID { return marked(u, 1) }

func marked(u uuid.UUID, released uint64) uuid.UUID {
	if _, ok := EpochOf(u); !ok {
		return u
	}
	high, low := split(u)
	return join(high, low&^(1<<randomBits)|released<<randomBits)
}

// encodeHost packs the first part of a host's name. Of a longer one the beginning and the end are kept, since hosts mostly differ
// in the end.
func encodeHost(name string) (n uint64) {
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	if len(name) > hostChars {
		name = name[:3] + "~" + name[len(name)-4:]
	}
	for i := range hostChars {
		c := 0
		if i < len(name) {
			if c = strings.IndexByte(alphabet, name[i]); c <= 0 {
				c = strings.IndexByte(alphabet, '-')
			}
		}
		n = n*uint64(len(alphabet)) + uint64(c) // #nosec G115 -- an index
	}
	return n
}

func decodeHost(n uint64) (name string, ok bool) {
	var b [hostChars]byte
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = alphabet[n%uint64(len(alphabet))]
		n /= uint64(len(alphabet))
	}
	name = strings.TrimRight(string(b[:]), "\x00")
	return name, n == 0 && !strings.Contains(name, "\x00")
}

// String says who it is and since when, for messages.
func (e Epoch) String() string {
	host := e.Host
	if host == "" {
		host = "a host without a name"
	}
	return fmt.Sprintf("%s, since %s", host, e.Since.Format(time.DateTime))
}
