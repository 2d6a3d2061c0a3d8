// Package lease keeps two hosts from writing one image. Locks alone do not: a storage that serves many hosts loses them when
// its servers are restarted, and gives them to another host when the one that holds them cannot be reached, which may only be
// asleep.
//
// The headers of the image decide. A writer that comes in leaves a mark: it puts an epoch, as FileWriteGuid (MS-VHDX 2.2.2), into the
// header that does not count, and waits. While a writer is in, it reads both headers again, past all caches, every few seconds. As long as they
// are those that it wrote, no other has come in since, and it may write for some seconds more. If they are not, another host has
// the image, and this one is done with it: the blocks that it knows may hold something else by now, so reads end, too.
//
//	confirmed   the headers were this writer's, at the time at which their reading began
//	Length      no change begins later than this after it was confirmed (8 s)
//	wait        a new writer changes nothing but the header that does not count before it has waited, longer than Length, after
//	            its mark was durable; then the mark must still be there
//
// So of two writers that are both alive at most one is in. A confirmation by the old one began before the mark of the new one
// was durable, and all that the old one does on its strength has begun before the new one is in. Nothing rests on clocks of two
// hosts showing the same time, nor on locks; each host's clock has to go on at its pace while the host sleeps.
//
// The mark is all that the new writer writes while the old one may be in, who may have told a user just now that a change is
// durable, in a log that the headers name only since then. So the header that counts is read when the wait is over, and what it
// names goes into both, with the new epoch. The old one may have written over the mark, in its last seconds; then it has not lost
// the image, and the new one has to give up.
//
// What is not closed: a change that began in time and is late for longer than Grace, in the kernel, in the client of the storage
// or in a process that was stopped in the middle of a system call. Only the storage, or a person who can cut the other host's power,
// can keep such a change off.
//
// Where nothing says that another host may be in, a new writer waits for Settle alone: for another one that comes in at the same
// moment. The headers say so when the epoch of one of them is held, or when a log is in use. The last act of a writer is an epoch that is
// released.
package lease
