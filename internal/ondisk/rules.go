package ondisk

import "fmt"

// A Rule is the number of one of the validation rules that every VHDX file has to keep. A file that
// breaks one is refused. The zero Rule is none.
type Rule uint8

// The rules, in the order in which a file is opened.
const (
	R1 Rule = iota + 1 // file and headers
	R2
	R3
	R4
	R5
	R6
	R7
	R8
	R9
	R10
	R11 // log
	R12
	R13
	R14 // region table
	R15
	R16
	R17
	R18
	R19
	R20
	R21
	R22
	R23
	R24 // metadata
	R25
	R26
	R27
	R28
	R29
	R30
	R31
	R32
	R33
	R34
	R35
	R36
	R37
	R38
	R39
	R40
	R41
	R42
	R43 // BAT
	R44
	R45
	R46
	R47
	R48
	R49
	R50
	R51
	R52
	R53 // parent
	R54
	R55
	R56
	R57
	R58
	R59
	R60
	R61
	R62
	R63
	R64
	R65
)

// rules says in which section of MS-VHDX a rule has its ground, and what it demands.
var rules = [...]struct{ section, text string }{
	R1:  {"2.2", "a file holds at least its 1 MiB header section"},
	R2:  {"2.2.1", "a file begins with the signature vhdxfile"},
	R3:  {"2.2.2", "one of the two headers has a good signature and checksum"},
	R4:  {"2.2.2", "two different headers have different sequence numbers"},
	R5:  {"2.2.2", "the version of the current header is 1"},
	R6:  {"2.2.2", "the version of a log that has to be replayed is 0"},
	R7:  {"2.2.2", "the log begins at a multiple of 1 MiB, behind the header section"},
	R8:  {"2.2.2", "the length of the log is a multiple of 1 MiB"},
	R9:  {"2.2.2", "the log lies inside the file"},
	R10: {"2.2.2", "a log that has to be replayed is not empty"},
	R11: {"2.3.3", "a log that has to be replayed holds a complete sequence of valid entries"},
	R12: {"2.3.1.1", "the file is not shorter than its log says it was"},
	R13: {"2.3.1", "a log entry writes neither below the region tables, nor into the log, nor past the largest file"},
	R14: {"2.2.3", "one of the two region tables has a good signature and checksum"},
	R15: {"2.2.3.1", "a region table has at most 2047 entries"},
	R16: {"2.2.3.2", "a region occurs once"},
	R17: {"2.2.3.2", "a region begins at a multiple of 1 MiB, behind the header section"},
	R18: {"2.2.3.2", "the length of a region is a multiple of 1 MiB and not 0"},
	R19: {"2.2.3", "regions overlap neither each other nor the log"},
	R20: {"2.2.3.2", "there is a BAT region"},
	R21: {"2.2.3.2", "there is a metadata region"},
	R22: {"2.2.3.2", "every required region is known"},
	R23: {"2.2.3", "the BAT and the metadata region lie inside the file"},
	R24: {"2.6.1.1", "the metadata table has its signature"},
	R25: {"2.6.1.1", "a metadata table has at most 2047 entries"},
	R26: {"2.6.1.2", "a metadata table has at most 1024 user entries"},
	R27: {"2.6.1.2", "a metadata item occurs once"},
	R28: {"2.6.1.2", "a metadata item lies behind the metadata table"},
	R29: {"2.6.1.2", "a metadata item lies inside the metadata region"},
	R30: {"2.6", "metadata items do not overlap"},
	R31: {"2.6.1.2", "a metadata item is at most 1 MiB long"},
	R32: {"2.6.1.2", "every required metadata item is known"},
	R33: {"2.6.2.1", "the file parameters are present"},
	R34: {"2.6.2.2", "the virtual disk size is present"},
	R35: {"2.6.2.4", "the logical sector size is present"},
	R36: {"2.6.2", "a known metadata item is as long as its structure"},
	R37: {"2.6.2.1", "the block size is a power of two from 1 MiB to 256 MiB"},
	R38: {"2.6.2.4", "the logical sector size is 512 or 4096 bytes"},
	R39: {"2.6.2.5", "the physical sector size is 512 or 4096 bytes"},
	R40: {"2.6.2.2", "the virtual disk size is not 0"},
	R41: {"2.6.2.2", "the virtual disk size is a multiple of the logical sector size"},
	R42: {"2.6.2.2", "the virtual disk size is at most 64 TiB"},
	R43: {"2.5", "the BAT region holds an entry for every block"},
	R44: {"2.5.1.1", "the state of a payload block is none of the reserved ones"},
	R45: {"2.5.1.1", "only a differencing disk has partially present blocks"},
	R46: {"2.5.1", "a present block does not lie in the header section"},
	R47: {"2.5.1", "a present block lies inside the file"},
	R48: {"2.5.1", "a present block overlaps neither a region nor the log"},
	R49: {"2.5.1", "present blocks do not overlap each other"},
	R50: {"2.5.1.2", "the state of a sector bitmap block is none of the reserved ones"},
	R51: {"2.5.1.2", "a sector bitmap block lies inside the file and overlaps nothing"},
	R52: {"2.5.1.2", "the chunk of a partially present block has a sector bitmap block"},
	R53: {"2.6.2.6", "a differencing disk has a parent locator"},
	R54: {"2.6.2.6.1", "the parent locator is of the type for VHDX"},
	R55: {"2.6.2.6.1", "a parent locator has entries, all of them inside the item"},
	R56: {"2.6.2.6.2", "keys and values of a parent locator lie inside the item and have an even length, not 0"},
	R57: {"2.6.2.6.2", "keys and values of a parent locator are UTF-16 without NUL"},
	R58: {"2.6.2.6.2", "a key of a parent locator occurs once"},
	R59: {"2.6.2.6.3", "a parent locator says parent_linkage, which is a GUID"},
	R60: {"2.6.2.6.3", "a parent locator has a path to the parent"},
	R61: {"2.6.2.6.3", "the parent of a differencing disk can be found"},
	R62: {"2.6.2.6.3", "the parent of a differencing disk can be opened"},
	R63: {"2.6.2.6.3", "the parent has the DataWriteGuid that the child knows"},
	R64: {"2.6.2.4", "parent and child have the same logical sector size"},
	R65: {"2.6.2.6", "a chain of parents holds a file once and ends"},
}

// Name returns the name of the rule, such as "R16".
func (r Rule) Name() string { return fmt.Sprintf("R%d", uint8(r)) }

// String returns the name with what it is: "rule R16".
func (r Rule) String() string { return "rule " + r.Name() }

// Section returns the section of MS-VHDX that the rule comes from.
func (r Rule) Section() string { return rules[r].section }

// Text returns what the rule demands, in a sentence.
func (r Rule) Text() string { return rules[r].text }

// Rules yields every rule in order.
func Rules(yield func(Rule) bool) {
	for r := R1; int(r) < len(rules); r++ {
		if !yield(r) {
			return
		}
	}
}

// MarshalText makes a rule read "R16" in JSON.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.Name()), nil }
