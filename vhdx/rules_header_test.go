package vhdx

import (
	"math"

	"vhdxfs/internal/ondisk"
	"vhdxfs/journal"
)

var headerRules = []ruleCase{
	{rule: ondisk.R1, name: "a byte short of 1 MiB", damage: func(s *scene) { s.Truncate(mib - 1) }},
	{rule: ondisk.R1, name: "empty file", damage: func(s *scene) { s.Truncate(0) }},
	{rule: ondisk.R2, name: "signature in capitals", damage: poke(0, "VHDXFILE")},
	{rule: ondisk.R2, name: "signature of VHD", damage: poke(0, "conectix")},

	{rule: ondisk.R3, name: "both signatures", damage: func(s *scene) {
		s.stamp(headerOffsets, headerSize, func(b []byte) { copy(b, "Head") })
	}},
	{rule: ondisk.R3, name: "both checksums", damage: func(s *scene) {
		for _, off := range headerOffsets {
			s.change(off+4, 1, func(b []byte) { b[0] ^= 0x80 })
		}
	}},
	{rule: ondisk.R3, name: "a flipped reserved bit in both", damage: func(s *scene) {
		for _, off := range headerOffsets {
			s.change(off+headerSize-1, 1, func(b []byte) { b[0] ^= 1 })
		}
	}},
	{rule: ondisk.R3, name: "one signature, the other checksum", damage: func(s *scene) {
		s.write([]byte("daeh"), headerOffsets[0])
		s.change(headerOffsets[1]+8, 1, func(b []byte) { b[0]++ })
	}},
	{rule: ondisk.R4, name: "one sequence number, two contents", damage: func(s *scene) {
		guid := parentGUID
		s.setHeaders(func(h *header) {
			h.SequenceNumber = 5
			guid[0]++
			h.FileWriteGUID = guid
		})
	}},
	{rule: ondisk.R4, name: "differing in reserved bytes alone", damage: func(s *scene) {
		i := byte(0)
		s.stamp(headerOffsets, headerSize, func(b []byte) {
			le.PutUint64(b[8:], 5)
			b[headerSize-1] = i
			i++
		})
	}},
	{rule: ondisk.R4, name: "sequence numbers a sign bit apart", good: true, damage: func(s *scene) {
		n := uint64(math.MaxInt64)
		s.setHeaders(func(h *header) { // the larger number is the newer header, without wrap-around
			h.SequenceNumber, h.Version = n, uint16(n>>63)
			n++
		})
	}},

	{rule: ondisk.R5, name: "version 0", damage: inHeaders(func(h *header) { h.Version = 0 })},
	{rule: ondisk.R5, name: "version 2", damage: inHeaders(func(h *header) { h.Version = 2 })},
	{rule: ondisk.R5, name: "version 2 of the older header", good: true, damage: inHeaders(func(h *header) {
		if h.SequenceNumber == 1 {
			h.Version = 2
		}
	})},
	{rule: ondisk.R6, name: "log version 1", damage: func(s *scene) {
		s.logEntries(s.logEntry())
		s.setHeaders(func(h *header) { h.LogGUID, h.LogVersion = testLogGUID, 1 })
	}},
	{rule: ondisk.R7, name: "log offset not at a MiB", damage: inHeaders(func(h *header) { h.LogOffset += 4096 })},
	{rule: ondisk.R7, name: "log in the header section", damage: inHeaders(func(h *header) { h.LogOffset = 0 })},
	{rule: ondisk.R7, name: "no log, at an odd place", good: true, damage: inHeaders(func(h *header) {
		h.LogLength, h.LogOffset = 0, math.MaxUint64
	})},
	{rule: ondisk.R8, name: "log of 1 MiB and 4 KiB", damage: inHeaders(func(h *header) { h.LogLength += 4096 })},
	{rule: ondisk.R8, name: "log of the largest 32-bit length", damage: inHeaders(func(h *header) { h.LogLength = math.MaxUint32 })},

	{rule: ondisk.R9, name: "log behind the file", damage: func(s *scene) {
		s.setHeaders(func(h *header) { h.LogOffset = uint64(s.size) })
	}},
	{rule: ondisk.R9, name: "log a MiB beyond the file", damage: func(s *scene) {
		s.setHeaders(func(h *header) { h.LogOffset, h.LogLength = uint64(s.size)-mib, 2*mib })
	}},
	{rule: ondisk.R9, name: "log at the end of the file", good: true, damage: func(s *scene) {
		s.grow(s.size + mib)
		s.setHeaders(func(h *header) { h.LogOffset = uint64(s.size) - mib })
	}},
	{rule: ondisk.R9, name: "log offset of 2^63", damage: inHeaders(func(h *header) { h.LogOffset = 1 << 63 })},
	{rule: ondisk.R9, name: "log end that wraps", damage: inHeaders(func(h *header) {
		h.LogOffset, h.LogLength = math.MaxUint64-mib+1, 2*mib
	})},
	{rule: ondisk.R9, name: "file cut inside its log", damage: func(s *scene) { s.Truncate(s.logOff + mib/2) }},
	{rule: ondisk.R10, name: "log to replay without length", damage: inHeaders(func(h *header) {
		h.LogGUID, h.LogLength = testLogGUID, 0
	})},
}

var logRules = []ruleCase{
	{rule: ondisk.R11, name: "empty log", damage: func(s *scene) { s.nameLog() }},
	{rule: ondisk.R11, name: "entry with a bad checksum", damage: func(s *scene) {
		s.logEntries(s.logEntry())
		s.change(s.logOff+4, 1, func(b []byte) { b[0]++ })
	}},
	{rule: ondisk.R11, name: "entry of another session", damage: func(s *scene) {
		e := s.logEntry()
		e.LogGUID = otherGUID
		s.logEntries(e)
	}},
	{rule: ondisk.R11, name: "tail outside the sequence", damage: func(s *scene) {
		e := s.logEntry()
		e.Tail = 4096
		s.logEntries(e)
	}},
	{rule: ondisk.R11, name: "second entry torn", damage: func(s *scene) {
		a, b := s.logEntry(), s.logEntry(journal.Update{FileOffset: uint64(s.batOff), ZeroLength: 4096})
		b.SequenceNumber++
		a.Tail = 8192
		s.logEntries(a, b)
		s.change(s.logOff+4096+100, 1, func(b []byte) { b[0]++ })
	}},

	{rule: ondisk.R12, name: "a byte shorter than FlushedFileOffset", damage: func(s *scene) {
		e := s.logEntry()
		e.FlushedFileOffset++
		s.logEntries(e)
	}},
	{rule: ondisk.R12, name: "FlushedFileOffset of all ones", damage: func(s *scene) {
		e := s.logEntry()
		e.FlushedFileOffset = math.MaxUint64
		s.logEntries(e)
	}},
	{rule: ondisk.R12, name: "just as long as FlushedFileOffset", good: true, damage: func(s *scene) {
		s.logEntries(s.logEntry())
	}},

	{rule: ondisk.R13, name: "page over a header", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: 64 * kib, Data: new([pageSize]byte)}
	})},
	{rule: ondisk.R13, name: "page below 192 KiB", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: 188 * kib, Data: new([pageSize]byte)}
	})},
	{rule: ondisk.R13, name: "page over a region table", good: true, damage: logged(func(s *scene) journal.Update {
		page := [pageSize]byte(s.read(regionTableOffsets[0], pageSize))
		return journal.Update{FileOffset: 192 * kib, Data: &page}
	})},
	{rule: ondisk.R13, name: "zeros from below 192 KiB", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: 188 * kib, ZeroLength: 8192}
	})},
	{rule: ondisk.R13, name: "page into the log", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: uint64(s.logOff + s.logLen - 4096), Data: new([pageSize]byte)}
	})},
	{rule: ondisk.R13, name: "zeros that reach the log", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: uint64(s.logOff - 4096), ZeroLength: 8192}
	})},
	{rule: ondisk.R13, name: "zeros up to the log", good: true, damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: uint64(s.logOff - 4096), ZeroLength: 4096}
	})},
	{rule: ondisk.R13, name: "page past the largest file", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: math.MaxInt64 - 4095, Data: new([pageSize]byte)}
	})},
	{rule: ondisk.R13, name: "zeros that wrap", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: math.MaxUint64 - 4095, ZeroLength: 8192}
	})},
	{rule: ondisk.R13, name: "LastFileOffset of 2^63", damage: func(s *scene) {
		e := s.logEntry()
		e.LastFileOffset = 1 << 63
		s.logEntries(e)
	}},
	{rule: ondisk.R13, name: "LastFileOffset above 256 TiB", damage: func(s *scene) {
		e := s.logEntry()
		e.LastFileOffset = maxFileSize + 1
		s.logEntries(e)
	}},
}

// logged returns a damage that puts one update into the log.
func logged(update func(s *scene) journal.Update) func(*scene) {
	return func(s *scene) { s.logEntries(s.logEntry(update(s))) }
}
