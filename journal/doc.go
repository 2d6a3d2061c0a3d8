// Package journal reads, replays and appends the log of a VHDX file (MS-VHDX 2.3). It is not named log,
// the standard library has that name. It knows 4 KiB pages at file offsets and nothing of what they mean.
//
// The log is a ring of log sectors of 4 KiB. A position is a byte offset in that ring. An entry is a header,
// its descriptors, then one data sector for each data descriptor; it may run over the end of the ring and
// go on at position 0:
//
//	| header 64 B | descriptors 32 B each ... pad | data sector | data sector | ...
//	|<----------- descriptor sectors ------------>|<---- log sectors of 4 KiB --->|
//
// A data sector has room for 4084 of the 4096 bytes of an update, at the place that they have in the page;
// the descriptor holds the others:
//
//	data descriptor | "desc" | TrailingBytes 4 | LeadingBytes 8 | FileOffset 8 | SequenceNumber 8 |
//	zero descriptor | "zero" | reserved 4      | ZeroLength 8   | FileOffset 8 | SequenceNumber 8 |
//	data sector     | "data" | SequenceHigh 4  | bytes 8 to 4092 of the page ... | SequenceLow 4    |
//
// The words:
//
//   - Update: what one descriptor demands, a page of 4 KiB with new bytes or a range of zeros.
//   - Sequence: a run of valid entries, each beginning where the one before ends, with sequence numbers
//     that rise by one. The last entry is its head.
//   - Tail: the position, named by each entry, of the oldest entry that had not been put in place when the
//     entry was written. A sequence is complete if it holds the entry at the tail of its head.
//   - Active sequence: the complete one whose head has the largest sequence number.
//   - Replay: doing the updates of the active sequence, from the tail of its head up to the head. Until then
//     only the headers and the log of the file may be read (MS-VHDX 2.3.3).
//
// A reader calls Find, then NewOverlay to replay in memory, or Apply to replay into the file. A writer calls
// Start and appends batches of pages. AppendEntry encodes an entry.
//
// For any bytes in a log, the time to find and to replay it grows with the length of the log and with
// the bytes that the file really holds. Memory stays below 128 bytes for each log sector, which is 32 KiB
// for a log of 1 MiB, plus 1 MiB of buffers and 72 bytes for each zero descriptor, of which a replay takes a
// million at most.
package journal
