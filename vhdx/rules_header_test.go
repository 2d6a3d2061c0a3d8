package vhdx

import (
	"math"

	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

var headerRules = []ruleCase{
	{rule: ondisk.RuleFileTooSmall, name: "a byte short of 1 MiB", damage: func(s *scene) { s.Truncate(ondisk.MiB - 1) }},
	{rule: ondisk.RuleFileTooSmall, name: "empty file", damage: func(s *scene) { s.Truncate(0) }},
	{rule: ondisk.RuleFileSignature, name: "signature in capitals", damage: poke(0, "VHDXFILE")},
	{rule: ondisk.RuleFileSignature, name: "signature of VHD", damage: poke(0, "conectix")},

	{rule: ondisk.RuleNoValidHeader, name: "both signatures", damage: func(s *scene) {
		s.stamp(ondisk.HeaderOffsets, ondisk.HeaderSize, func(b []byte) { copy(b, "Head") })
	}},
	{rule: ondisk.RuleNoValidHeader, name: "both checksums", damage: func(s *scene) {
		for _, off := range ondisk.HeaderOffsets {
			s.change(off+4, 1, func(b []byte) { b[0] ^= 0x80 })
		}
	}},
	{rule: ondisk.RuleNoValidHeader, name: "a flipped reserved bit in both", damage: func(s *scene) {
		for _, off := range ondisk.HeaderOffsets {
			s.change(off+ondisk.HeaderSize-1, 1, func(b []byte) { b[0] ^= 1 })
		}
	}},
	{rule: ondisk.RuleNoValidHeader, name: "one signature, the other checksum", damage: func(s *scene) {
		s.write([]byte("daeh"), ondisk.HeaderOffsets[0])
		s.change(ondisk.HeaderOffsets[1]+8, 1, func(b []byte) { b[0]++ })
	}},
	{rule: ondisk.RuleHeadersAmbiguous, name: "one sequence number, two contents", damage: func(s *scene) {
		guid := parentGUID
		s.setHeaders(func(h *ondisk.Header) {
			h.SequenceNumber = 5
			guid[0]++
			h.FileWriteGUID = guid
		})
	}},
	{rule: ondisk.RuleHeadersAmbiguous, name: "differing in reserved bytes alone", damage: func(s *scene) {
		i := byte(0)
		s.stamp(ondisk.HeaderOffsets, ondisk.HeaderSize, func(b []byte) {
			ondisk.LE.PutUint64(b[8:], 5)
			b[ondisk.HeaderSize-1] = i
			i++
		})
	}},
	{rule: ondisk.RuleHeadersAmbiguous, name: "sequence numbers a sign bit apart", good: true, damage: func(s *scene) {
		n := uint64(math.MaxInt64)
		s.setHeaders(func(h *ondisk.Header) { // the larger number is the newer header, without wrap-around
			h.SequenceNumber, h.Version = n, uint16(n>>63)
			n++
		})
	}},

	{rule: ondisk.RuleHeaderVersion, name: "version 0", damage: inHeaders(func(h *ondisk.Header) { h.Version = 0 })},
	{rule: ondisk.RuleHeaderVersion, name: "version 2", damage: inHeaders(func(h *ondisk.Header) { h.Version = 2 })},
	{rule: ondisk.RuleHeaderVersion, name: "version 2 of the older header", good: true, damage: inHeaders(func(h *ondisk.Header) {
		if h.SequenceNumber == 1 {
			h.Version = 2
		}
	})},
	{rule: ondisk.RuleLogVersion, name: "log version 1", damage: func(s *scene) {
		s.logEntries(s.logEntry())
		s.setHeaders(func(h *ondisk.Header) { h.LogGUID, h.LogVersion = testLogGUID, 1 })
	}},
	{rule: ondisk.RuleLogOffset, name: "log offset not at a MiB", damage: inHeaders(func(h *ondisk.Header) { h.LogOffset += 4096 })},
	{rule: ondisk.RuleLogOffset, name: "log in the header section", damage: inHeaders(func(h *ondisk.Header) { h.LogOffset = 0 })},
	{rule: ondisk.RuleLogOffset, name: "no log, at an odd place", good: true, damage: inHeaders(func(h *ondisk.Header) {
		h.LogLength, h.LogOffset = 0, math.MaxUint64
	})},
	{rule: ondisk.RuleLogLength, name: "log of 1 MiB and 4 KiB", damage: inHeaders(func(h *ondisk.Header) { h.LogLength += 4096 })},
	{rule: ondisk.RuleLogLength, name: "log of the largest 32-bit length", damage: inHeaders(func(h *ondisk.Header) { h.LogLength = math.MaxUint32 })},

	{rule: ondisk.RuleLogBeyondFile, name: "log behind the file", damage: func(s *scene) {
		s.setHeaders(func(h *ondisk.Header) { h.LogOffset = uint64(s.size) })
	}},
	{rule: ondisk.RuleLogBeyondFile, name: "log a MiB beyond the file", damage: func(s *scene) {
		s.setHeaders(func(h *ondisk.Header) { h.LogOffset, h.LogLength = uint64(s.size)-ondisk.MiB, 2*ondisk.MiB })
	}},
	{rule: ondisk.RuleLogBeyondFile, name: "log at the end of the file", good: true, damage: func(s *scene) {
		s.grow(s.size + ondisk.MiB)
		s.setHeaders(func(h *ondisk.Header) { h.LogOffset = uint64(s.size) - ondisk.MiB })
	}},
	{rule: ondisk.RuleLogBeyondFile, name: "log offset of 2^63", damage: inHeaders(func(h *ondisk.Header) { h.LogOffset = 1 << 63 })},
	{rule: ondisk.RuleLogBeyondFile, name: "log end that wraps", damage: inHeaders(func(h *ondisk.Header) {
		h.LogOffset, h.LogLength = math.MaxUint64-ondisk.MiB+1, 2*ondisk.MiB
	})},
	{rule: ondisk.RuleLogBeyondFile, name: "file cut inside its log", damage: func(s *scene) { s.Truncate(s.logOff + ondisk.MiB/2) }},
	{rule: ondisk.RuleLogEmpty, name: "log to replay without length", damage: inHeaders(func(h *ondisk.Header) {
		h.LogGUID, h.LogLength = testLogGUID, 0
	})},
}

var logRules = []ruleCase{
	{rule: ondisk.RuleLogSequence, name: "empty log", damage: func(s *scene) { s.nameLog() }},
	{rule: ondisk.RuleLogSequence, name: "entry with a bad checksum", damage: func(s *scene) {
		s.logEntries(s.logEntry())
		s.change(s.logOff+4, 1, func(b []byte) { b[0]++ })
	}},
	{rule: ondisk.RuleLogSequence, name: "entry of another session", damage: func(s *scene) {
		e := s.logEntry()
		e.LogGUID = otherGUID
		s.logEntries(e)
	}},
	{rule: ondisk.RuleLogSequence, name: "tail outside the sequence", damage: func(s *scene) {
		e := s.logEntry()
		e.Tail = 4096
		s.logEntries(e)
	}},
	{rule: ondisk.RuleLogSequence, name: "second entry torn", damage: func(s *scene) {
		a, b := s.logEntry(), s.logEntry(journal.Update{FileOffset: uint64(s.batOff), ZeroLength: 4096})
		b.SequenceNumber++
		a.Tail = 8192
		s.logEntries(a, b)
		s.change(s.logOff+4096+100, 1, func(b []byte) { b[0]++ })
	}},

	{rule: ondisk.RuleFileShorterThanLog, name: "a byte shorter than FlushedFileOffset", damage: func(s *scene) {
		e := s.logEntry()
		e.FlushedFileOffset++
		s.logEntries(e)
	}},
	{rule: ondisk.RuleFileShorterThanLog, name: "FlushedFileOffset of all ones", damage: func(s *scene) {
		e := s.logEntry()
		e.FlushedFileOffset = math.MaxUint64
		s.logEntries(e)
	}},
	{rule: ondisk.RuleFileShorterThanLog, name: "just as long as FlushedFileOffset", good: true, damage: func(s *scene) {
		s.logEntries(s.logEntry())
	}},

	{rule: ondisk.RuleLogTarget, name: "page over a header", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: 64 * ondisk.KiB, Data: new([ondisk.PageSize]byte)}
	})},
	{rule: ondisk.RuleLogTarget, name: "page below 192 KiB", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: 188 * ondisk.KiB, Data: new([ondisk.PageSize]byte)}
	})},
	{rule: ondisk.RuleLogTarget, name: "page over a region table", good: true, damage: logged(func(s *scene) journal.Update {
		page := [ondisk.PageSize]byte(s.read(ondisk.RegionTableOffsets[0], ondisk.PageSize))
		return journal.Update{FileOffset: 192 * ondisk.KiB, Data: &page}
	})},
	{rule: ondisk.RuleLogTarget, name: "zeros from below 192 KiB", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: 188 * ondisk.KiB, ZeroLength: 8192}
	})},
	{rule: ondisk.RuleLogTarget, name: "page into the log", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: uint64(s.logOff + s.logLen - 4096), Data: new([ondisk.PageSize]byte)}
	})},
	{rule: ondisk.RuleLogTarget, name: "zeros that reach the log", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: uint64(s.logOff - 4096), ZeroLength: 8192}
	})},
	{rule: ondisk.RuleLogTarget, name: "zeros up to the log", good: true, damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: uint64(s.logOff - 4096), ZeroLength: 4096}
	})},
	{rule: ondisk.RuleLogTarget, name: "page past the largest file", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: math.MaxInt64 - 4095, Data: new([ondisk.PageSize]byte)}
	})},
	{rule: ondisk.RuleLogTarget, name: "zeros that wrap", damage: logged(func(s *scene) journal.Update {
		return journal.Update{FileOffset: math.MaxUint64 - 4095, ZeroLength: 8192}
	})},
	{rule: ondisk.RuleLogTarget, name: "LastFileOffset of 2^63", damage: func(s *scene) {
		e := s.logEntry()
		e.LastFileOffset = 1 << 63
		s.logEntries(e)
	}},
	{rule: ondisk.RuleLogTarget, name: "LastFileOffset above 256 TiB", damage: func(s *scene) {
		e := s.logEntry()
		e.LastFileOffset = ondisk.MaxFileSize + 1
		s.logEntries(e)
	}},
}

// logged returns a damage that puts one update into the log.
func logged(update func(s *scene) journal.Update) func(*scene) {
	return func(s *scene) { s.logEntries(s.logEntry(update(s))) }
}
