package vhdx

import (
	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/journal"
	"github.com/vhdxfs/vhdxfs/vhdx/lease"
	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// setHeader makes both headers of the draft say what change makes of them, under sequence numbers above those of the
// file: apply writes the current header once before, and then both.
func (r *repairer) setHeader(change func(h *ondisk.Header)) error {
	change(&r.header)
	for i, slot := range []int{r.slot, 1 - r.slot} {
		if _, err := r.d.WriteAt(r.headerCopy(i)[:], ondisk.HeaderOffsets[slot]); err != nil {
			return err
		}
	}
	return nil
}

// headerCopy returns the new header as it is going to stand in the place of the current one, for i = 0, and in the
// other place, for i = 1.
func (r *repairer) headerCopy(i int) *[ondisk.HeaderSize]byte {
	h := r.header
	h.SequenceNumber = r.copies[r.slot].SequenceNumber + uint64(2+i)
	return h.Encode()
}

// announcement returns what the other place holds while the image is being changed: the header that counts until then,
// with a new FileWriteGuid, which says that a host is in if the image has a lease.
func (r *repairer) announcement() *[ondisk.HeaderSize]byte {
	h := r.copies[r.slot]
	h.SequenceNumber++
	h.FileWriteGUID = lease.Held(r.header.FileWriteGUID)
	return h.Encode()
}

// mendIdentifier writes the identifier anew, which was overwritten: the headers are there.
func (r *repairer) mendIdentifier(_ *layer, list []Finding) error {
	r.fixed(list[0], "rewritten, because everything else is present; an interrupted creation looks the same")
	_, err := r.d.WriteAt([]byte(ondisk.IdentifierSignature), 0)
	return err
}

// mendEqualHeaders takes the first of two headers that both count. Where they differ in how the image is to be read
// it is unknown which is right.
func (r *repairer) mendEqualHeaders(_ *layer, list []Finding) error {
	a, b := r.copies[0], r.copies[1]
	if a.LogGUID != b.LogGUID || a.LogVersion != b.LogVersion || a.Version != b.Version || a.LogLength != b.LogLength || a.LogOffset != b.LogOffset {
		return nil
	}
	done := "header 1 is used; they differ only in their GUIDs"
	if a.DataWriteGUID != b.DataWriteGUID {
		done += ". Children of the image may expect the DataWriteGuid of header 2, " + b.DataWriteGUID.String()
	}
	r.fixed(list[0], "%s", done)
	return r.setHeader(func(*ondisk.Header) {})
}

// mendHeaders writes both headers from the current one, where they are not as a writer leaves them.
func (r *repairer) mendHeaders(l *layer, list []Finding) error {
	hs := l.headers
	if hs.err == [2]error{} && hs.copies[0] != hs.copies[1] && hs.header().LogVersion == 0 {
		return nil // that there is no log is for addLog
	}
	r.fixed(list[0], "both headers are rewritten from the current one")
	return r.setHeader(func(h *ondisk.Header) { h.LogVersion = 0 })
}

// mendLogPlace takes a log away that cannot be where the header says. If it had to be replayed, what it held is lost.
func (r *repairer) mendLogPlace(l *layer, list []Finding) error {
	if r.header.Dirty() {
		return r.dropLog(l, list)
	}
	r.fixed(list[0], "the log is discarded; it was empty")
	return r.setHeader(noLog)
}

func noLog(h *ondisk.Header) {
	h.LogGUID, h.LogVersion = uuid.Nil, 0
	h.LogLength, h.LogOffset = 0, 0
}

// dropLog gives up a log that has to be replayed and cannot be. MS-VHDX 2.3.3 has such an image as corrupt: changes of
// the block table may be in the log alone, half in their places, or both.
func (r *repairer) dropLog(l *layer, list []Finding) error {
	if !r.o.DropLog {
		r.advice = []string{"--drop-log discards the log and repairs the image without it; the last changes may be lost or incomplete"}
		return nil
	}
	r.hurt(list[0], Suspect, nil, "the log is discarded: the last changes may be lost or incomplete")
	return r.setHeader(func(h *ondisk.Header) {
		log := *h
		log.LogGUID, log.LogVersion = uuid.Nil, 0
		if log.Validate(0, l.fileSize) != nil {
			noLog(&log)
		}
		*h = log
	})
}

// replay replays the log, as opening the image for writing does.
func (r *repairer) replay(l *layer, list []Finding) error {
	if l.replay == nil {
		return nil
	}
	if err := journal.Apply(r.d, l.sequence); err != nil {
		return err
	}
	r.fixed(list[0], "replayed")
	return r.setHeader(func(h *ondisk.Header) { h.LogGUID = uuid.Nil })
}

// replayTruncated replays the log of a file that was cut: the log says that it was longer. What lay behind the end is
// lost, and the entries that point there are mended later. The file must not grow meanwhile, or they would not show.
func (r *repairer) replayTruncated(l *layer, list []Finding) error {
	seq, err := journal.Find(r.d, l.log())
	if err != nil {
		return err
	}
	seq.FlushedFileOffset, seq.LastFileOffset = 0, 0
	v, err := journal.NewOverlay(r.d, r.d.size, seq)
	if err != nil || v.Size() > r.d.size {
		return r.dropLog(l, list) // it has other faults, or updates behind the end
	}
	if err := journal.Apply(r.d, seq); err != nil {
		return err
	}
	r.fixed(list[0], "the log is replayed up to the end of the file")
	r.keepSpace = true
	return r.setHeader(func(h *ondisk.Header) { h.LogGUID = uuid.Nil })
}

// addLog gives an image without a log one, so that it can be written.
func (r *repairer) addLog(l *layer, list []Finding) error {
	if l.log().Length > 0 {
		return nil
	}
	off, err := r.d.append(DefaultLogSize, l.space)
	if err != nil {
		return err
	}
	r.fixed(list[0], "a log of 1 MiB at %#x", off)
	return r.setHeader(func(h *ondisk.Header) { h.LogOffset, h.LogLength = uint64(off), DefaultLogSize })
}
