package ondisk

import "fmt"

// A Rule is one of the validation rules that every VHDX file has to keep. A file that breaks one is refused.
// The zero Rule is none. docs/format.md lists them all.
type Rule uint8

// The rules, in the order in which a file is opened.
const (
	RuleFileTooSmall Rule = iota + 1 // file and headers
	RuleFileSignature
	RuleNoValidHeader
	RuleHeadersAmbiguous
	RuleHeaderVersion
	RuleLogVersion
	RuleLogOffset
	RuleLogLength
	RuleLogBeyondFile
	RuleLogEmpty
	RuleLogSequence // log
	RuleFileShorterThanLog
	RuleLogTarget
	RuleNoValidRegionTable // region table
	RuleRegionCount
	RuleRegionTwice
	RuleRegionOffset
	RuleRegionLength
	RuleRegionOverlap
	RuleNoBATRegion
	RuleNoMetadataRegion
	RuleRegionUnknown
	RuleRegionBeyondFile
	RuleMetadataSignature // metadata
	RuleMetadataCount
	RuleMetadataUserCount
	RuleItemTwice
	RuleItemInTable
	RuleItemBeyondRegion
	RuleItemOverlap
	RuleItemTooLong
	RuleItemUnknown
	RuleNoFileParameters
	RuleNoDiskSize
	RuleNoLogicalSectorSize
	RuleItemLength
	RuleBlockSize
	RuleLogicalSectorSize
	RulePhysicalSectorSize
	RuleDiskEmpty
	RuleDiskSizeUnaligned
	RuleDiskTooLarge
	RuleBATTooSmall // BAT
	RuleBlockState
	RulePartialWithoutParent
	RuleBlockInHeaderSection
	RuleBlockBeyondFile
	RuleBlockOverlapsRegion
	RuleBlockOverlap
	RuleBitmapState
	RuleBitmapPlace
	RuleNoSectorBitmap
	RuleNoParentLocator // parent
	RuleLocatorType
	RuleLocatorEntries
	RuleLocatorString
	RuleLocatorText
	RuleLocatorKeyTwice
	RuleNoLinkage
	RuleNoParentPath
	RuleParentNotFound
	RuleParentUnreadable
	RuleParentChanged
	RuleParentSectorSize
	RuleChainEndless
)

// rules says in which section of MS-VHDX a rule has its ground, and what it demands.
var rules = [...]struct{ section, text string }{
	RuleFileTooSmall:         {"2.2", "a file holds at least its 1 MiB header section"},
	RuleFileSignature:        {"2.2.1", "a file begins with the signature vhdxfile"},
	RuleNoValidHeader:        {"2.2.2", "one of the two headers has a good signature and checksum"},
	RuleHeadersAmbiguous:     {"2.2.2", "two different headers have different sequence numbers"},
	RuleHeaderVersion:        {"2.2.2", "the version of the current header is 1"},
	RuleLogVersion:           {"2.2.2", "the version of a log that has to be replayed is 0"},
	RuleLogOffset:            {"2.2.2", "the log begins at a multiple of 1 MiB, behind the header section"},
	RuleLogLength:            {"2.2.2", "the length of the log is a multiple of 1 MiB"},
	RuleLogBeyondFile:        {"2.2.2", "the log lies inside the file"},
	RuleLogEmpty:             {"2.2.2", "a log that has to be replayed is not empty"},
	RuleLogSequence:          {"2.3.3", "a log that has to be replayed holds a complete sequence of valid entries"},
	RuleFileShorterThanLog:   {"2.3.1.1", "the file is not shorter than its log says it was"},
	RuleLogTarget:            {"2.3.1", "a log entry writes neither below the region tables, nor into the log, nor past the largest file"},
	RuleNoValidRegionTable:   {"2.2.3", "one of the two region tables has a good signature and checksum"},
	RuleRegionCount:          {"2.2.3.1", "a region table has at most 2047 entries"},
	RuleRegionTwice:          {"2.2.3.2", "a region occurs once"},
	RuleRegionOffset:         {"2.2.3.2", "a region begins at a multiple of 1 MiB, behind the header section"},
	RuleRegionLength:         {"2.2.3.2", "the length of a region is a multiple of 1 MiB and not 0"},
	RuleRegionOverlap:        {"2.2.3", "regions overlap neither each other nor the log"},
	RuleNoBATRegion:          {"2.2.3.2", "there is a BAT region"},
	RuleNoMetadataRegion:     {"2.2.3.2", "there is a metadata region"},
	RuleRegionUnknown:        {"2.2.3.2", "every required region is known"},
	RuleRegionBeyondFile:     {"2.2.3", "the BAT and the metadata region lie inside the file"},
	RuleMetadataSignature:    {"2.6.1.1", "the metadata table has its signature"},
	RuleMetadataCount:        {"2.6.1.1", "a metadata table has at most 2047 entries"},
	RuleMetadataUserCount:    {"2.6.1.2", "a metadata table has at most 1024 user entries"},
	RuleItemTwice:            {"2.6.1.2", "a metadata item occurs once"},
	RuleItemInTable:          {"2.6.1.2", "a metadata item lies behind the metadata table"},
	RuleItemBeyondRegion:     {"2.6.1.2", "a metadata item lies inside the metadata region"},
	RuleItemOverlap:          {"2.6", "metadata items do not overlap"},
	RuleItemTooLong:          {"2.6.1.2", "a metadata item is at most 1 MiB long"},
	RuleItemUnknown:          {"2.6.1.2", "every required metadata item is known"},
	RuleNoFileParameters:     {"2.6.2.1", "the file parameters are present"},
	RuleNoDiskSize:           {"2.6.2.2", "the virtual disk size is present"},
	RuleNoLogicalSectorSize:  {"2.6.2.4", "the logical sector size is present"},
	RuleItemLength:           {"2.6.2", "a known metadata item is at least as long as its structure"},
	RuleBlockSize:            {"2.6.2.1", "the block size is a power of two from 1 MiB to 256 MiB"},
	RuleLogicalSectorSize:    {"2.6.2.4", "the logical sector size is 512 or 4096 bytes"},
	RulePhysicalSectorSize:   {"2.6.2.5", "the physical sector size is 512 or 4096 bytes"},
	RuleDiskEmpty:            {"2.6.2.2", "the virtual disk size is not 0"},
	RuleDiskSizeUnaligned:    {"2.6.2.2", "the virtual disk size is a multiple of the logical sector size"},
	RuleDiskTooLarge:         {"2.6.2.2", "the virtual disk size is at most 64 TiB"},
	RuleBATTooSmall:          {"2.5", "the BAT region holds an entry for every block"},
	RuleBlockState:           {"2.5.1.1", "the state of a payload block is none of the reserved ones"},
	RulePartialWithoutParent: {"2.5.1.1", "only a differencing disk has partially present blocks"},
	RuleBlockInHeaderSection: {"2.5.1", "a present block does not lie in the header section"},
	RuleBlockBeyondFile:      {"2.5.1", "a present block lies inside the file"},
	RuleBlockOverlapsRegion:  {"2.5.1", "a present block overlaps neither a region nor the log"},
	RuleBlockOverlap:         {"2.5.1", "present blocks do not overlap each other"},
	RuleBitmapState:          {"2.5.1.2", "the state of a sector bitmap block is none of the reserved ones"},
	RuleBitmapPlace:          {"2.5.1.2", "a sector bitmap block lies inside the file and overlaps nothing"},
	RuleNoSectorBitmap:       {"2.5.1.2", "the chunk of a partially present block has a sector bitmap block"},
	RuleNoParentLocator:      {"2.6.2.6", "a differencing disk has a parent locator"},
	RuleLocatorType:          {"2.6.2.6.1", "the parent locator is of the type for VHDX"},
	RuleLocatorEntries:       {"2.6.2.6.1", "a parent locator has entries, all of them inside the item"},
	RuleLocatorString:        {"2.6.2.6.2", "keys and values of a parent locator lie inside the item and have an even length, not 0"},
	RuleLocatorText:          {"2.6.2.6.2", "keys and values of a parent locator are UTF-16 without NUL"},
	RuleLocatorKeyTwice:      {"2.6.2.6.2", "a key of a parent locator occurs once"},
	RuleNoLinkage:            {"2.6.2.6.3", "a parent locator says parent_linkage, which is a GUID"},
	RuleNoParentPath:         {"2.6.2.6.3", "a parent locator has a path to the parent"},
	RuleParentNotFound:       {"2.6.2.6.3", "the parent of a differencing disk can be found"},
	RuleParentUnreadable:     {"2.6.2.6.3", "the parent of a differencing disk can be opened"},
	RuleParentChanged:        {"2.6.2.6.3", "the parent has the DataWriteGuid that the child knows"},
	RuleParentSectorSize:     {"2.6.2.4", "parent and child have the same logical sector size"},
	RuleChainEndless:         {"2.6.2.6", "a chain of parents holds a file once and ends"},
}

// Number returns the number by which users know the rule: 16 of rule R16. It never changes.
func (r Rule) Number() int { return int(r) }

// Name returns the number of the rule as users see it, such as "R16".
func (r Rule) Name() string { return fmt.Sprintf("R%d", r.Number()) }

// String returns the name with what it is: "rule R16".
func (r Rule) String() string { return "rule " + r.Name() }

// Section returns the section of MS-VHDX that the rule comes from.
func (r Rule) Section() string { return rules[r].section }

// Text returns what the rule demands, in a sentence.
func (r Rule) Text() string { return rules[r].text }

// Rules yields every rule in order.
func Rules(yield func(Rule) bool) {
	for r := RuleFileTooSmall; int(r) < len(rules); r++ {
		if !yield(r) {
			return
		}
	}
}

// MarshalText makes a rule read "R16" in JSON.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.Name()), nil }
