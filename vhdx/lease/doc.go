// Package lease keeps two hosts from writing one image. Locks alone do not: a storage that serves many hosts loses them when
// its servers are restarted, and gives them to another host when the one that holds them cannot be reached, which may only be
// asleep.
//
// The headers of the image decide. A writer that comes in puts an epoch into FileWriteGuid, in both headers, durably, and waits
// before it uses the image. While it is in, it reads both headers again, past all caches, every few seconds. As long as they
// are those that it wrote, nobody has come in since, and it may write for some seconds more. If they are not, another host has
// the image, and this one is done with it: the blocks that it knows may hold something else by now, so reads end, too.
//
//	confirmed   the headers were this writer's, at the time at which their reading began
//	Length      no change begins later than this after it was confirmed (8 s)
//	wait        a new writer changes nothing but the headers before it has waited, longer than Length, after its epoch was
//	            durable; then both must still be its own
//
// So of two writers that are both alive at most one is in. A confirmation by the old one began before the epoch of the new one
// was durable, and all that the old one does on its strength has begun before the new one is in. Nothing rests on clocks of two
// hosts showing the same time, nor on locks; each host's clock has to go on at its pace while the host sleeps.
//
// What is not closed: a change that began in time and is late for longer than Grace, in the kernel, in the client of the storage
// or in a process that was stopped in the middle of a system call. Only the storage, or whoever can cut the other host's power,
// can keep such a change off.
//
// Where nothing says that another host may be in, a new writer waits for Settle alone: for another one that comes in at the same
// moment. The headers say so when their epoch is held, or when a log is in use. The last act of a writer is an epoch that is
// released.
package lease
