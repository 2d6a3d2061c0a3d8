package vhdx

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// A repairer plans the repair of one image on a draft of its file: it examines the draft, mends what the findings
// tell of, and begins anew, until nothing is left that it can mend. What depends on a place in the file being right
// is mended after what says where that place is.
type repairer struct {
	ctx  context.Context
	op   *opener
	top  *layer // of the file itself, with nothing loaded but path and file
	o    RepairOptions
	d    *draft
	last *layer // of the draft, as it was examined last

	copies [2]ondisk.Header // of the file; valid unless headless
	slot   int              // of the current one
	header ondisk.Header    // that the image is going to have

	headless   bool  // there is no header, so nothing can be repaired
	triedOther bool  // the other copy of the region table was taken
	batCut     int64 // where the file has ended inside the BAT region, until that is mended; 0 is not at all
	lossy      bool  // a fix is not harmless
	keepSpace  bool  // what nothing uses may be what is missing
	kept       int64 // bytes that nothing uses and that are not given back, since they hold data

	fixes  []Fix
	left   []Finding
	advice []string
}

func newRepairer(ctx context.Context, op *opener, top *layer, o RepairOptions) (*repairer, error) {
	d, err := newDraft(top.file)
	if err != nil {
		return nil, err
	}
	withoutNil(&o.Phase, &o.Progress)
	r := &repairer{ctx: ctx, op: op, top: top, o: o, d: d}
	if d.old < ondisk.HeaderSectionSize {
		r.headless = true
		return r, nil
	}
	hs, err := readHeaders(top.file)
	switch {
	case ruleOf(err) == ondisk.RuleHeadersAmbiguous: // the first is taken, where they agree on what matters
	case errors.Is(err, ErrCorrupt):
		r.headless = true
		return r, nil
	case err != nil:
		return nil, err
	}
	r.copies, r.slot = hs.copies, hs.current
	r.header = hs.header()
	r.header.FileWriteGUID = uuid.New()
	return r, nil
}

// A repair mends findings of one kind.
type repair struct {
	structure string        // that the findings are about
	rules     []ondisk.Rule // that the findings say are broken; none is those that break no rule
	mend      func(r *repairer, l *layer, list []Finding) error
}

// repairs are in stages: when one of a stage has mended something, the draft is examined anew, from its first byte.
var repairs = [][]repair{
	{
		{"file type identifier", []ondisk.Rule{ondisk.RuleFileSignature}, (*repairer).mendIdentifier},
		{"header", []ondisk.Rule{ondisk.RuleHeadersAmbiguous}, (*repairer).mendEqualHeaders},
		{"header", []ondisk.Rule{ondisk.RuleLogOffset, ondisk.RuleLogLength, ondisk.RuleLogBeyondFile}, (*repairer).mendLogPlace},
		{"header", []ondisk.Rule{ondisk.RuleLogVersion, ondisk.RuleLogEmpty}, (*repairer).dropLog},
		{"log", []ondisk.Rule{ondisk.RuleLogSequence, ondisk.RuleLogTarget}, (*repairer).dropLog},
		{"log descriptor", []ondisk.Rule{ondisk.RuleLogTarget}, (*repairer).dropLog},
		{"log entry", []ondisk.Rule{ondisk.RuleLogTarget}, (*repairer).dropLog},
		{"log entry", []ondisk.Rule{ondisk.RuleFileShorterThanLog}, (*repairer).replayTruncated},
	},
	{{structure: "log", mend: (*repairer).replay}},
	{{"region table entry", []ondisk.Rule{ondisk.RuleRegionTwice, ondisk.RuleRegionOffset, ondisk.RuleRegionLength, ondisk.RuleRegionUnknown, ondisk.RuleRegionBeyondFile}, (*repairer).takeOtherTable},
		{"region table", []ondisk.Rule{ondisk.RuleRegionOverlap, ondisk.RuleNoBATRegion, ondisk.RuleNoMetadataRegion}, (*repairer).takeOtherTable}},
	{
		{"header", nil, (*repairer).mendHeaders},
		{"region table", nil, (*repairer).mendTables},
		{"region table entry", nil, (*repairer).mendRegions},
		{"region table entry", []ondisk.Rule{ondisk.RuleRegionOffset, ondisk.RuleRegionLength}, (*repairer).mendRegions},
		{"metadata table entry", nil, (*repairer).mendItems},
		{"metadata table entry", []ondisk.Rule{ondisk.RuleItemTwice, ondisk.RuleItemInTable, ondisk.RuleItemBeyondRegion, ondisk.RuleItemTooLong, ondisk.RuleItemLength}, (*repairer).mendItems},
		{"file parameters", nil, (*repairer).mendFileParameters},
		{"physical sector size", []ondisk.Rule{ondisk.RulePhysicalSectorSize}, (*repairer).mendPhysicalSectorSize},
	},
	{{"region table entry", []ondisk.Rule{ondisk.RuleRegionBeyondFile}, (*repairer).growBAT}},
	{{cutBAT, nil, (*repairer).fillBAT}},
	{
		{"BAT entry", []ondisk.Rule{ondisk.RuleBlockState, ondisk.RulePartialWithoutParent, ondisk.RuleBlockInHeaderSection, ondisk.RuleBlockBeyondFile, ondisk.RuleBlockOverlapsRegion}, (*repairer).mendBlocks},
		{"BAT entry", nil, (*repairer).tidyEntries},
		{"BAT", nil, (*repairer).dropKeptPlaces},
	},
	{{"BAT entry", []ondisk.Rule{ondisk.RuleBlockOverlap}, (*repairer).separate}},
	{{"BAT entry", []ondisk.Rule{ondisk.RuleBitmapState, ondisk.RuleBitmapPlace, ondisk.RuleNoSectorBitmap}, (*repairer).mendBitmaps}},
	{{structure: "log", mend: (*repairer).addLog}},
	{{structure: "file", mend: (*repairer).giveBack}},
}

// takes returns the findings of the list that are this repair's.
func (p *repair) takes(list []Finding) []Finding {
	var mine []Finding
	for _, f := range list {
		byRule := slices.ContainsFunc(p.rules, func(r ondisk.Rule) bool { return r.Name() == f.Rule })
		if f.Structure == p.structure && (byRule || len(p.rules) == 0 && f.Rule == "") {
			mine = append(mine, f)
		}
	}
	return mine
}

// maxRepairs bounds the findings of one round. Where there are more, so much is damaged that a repair does not help.
const maxRepairs = 64_000

// maxRounds bounds the rounds, each of which mends all that one stage can.
const maxRounds = 64

// plan mends all that can be mended. Afterwards left has the broken rules that remain.
func (r *repairer) plan() error {
	for range maxRounds {
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		l, list, err := r.examine()
		if err != nil {
			return err
		}
		r.last = l
		if l.dropped > 0 {
			r.left = []Finding{{Structure: "BAT", Message: fmt.Sprintf("it has more than %d entries to repair", maxRepairs)}}
			return nil
		}
		mended, err := r.mendFirst(l, list)
		if err != nil {
			return err
		}
		if mended {
			continue
		}
		r.left = slices.DeleteFunc(list, func(f Finding) bool { return f.Rule == "" })
		return nil
	}
	r.left = []Finding{{Structure: "BAT", Message: fmt.Sprintf("after %d repairs there is still more to repair", len(r.fixes))}}
	return nil
}

// examine loads the draft, and returns all that was found: broken rules, oddities, and what else there is to do.
func (r *repairer) examine() (*layer, []Finding, error) {
	l := r.op.newLayer(r.d, r.top.path)
	l.homes = r.top.homes
	l.maxFindings = maxRepairs
	err := l.load()
	list := append(slices.Clone(l.errors), l.warnings...)
	var fe *FormatError
	switch {
	case errors.As(err, &fe):
		return l, append(list, newFinding(fe)), nil
	case err != nil && len(l.errors) == 0: // else it follows from a broken rule, such as a read beyond the file
		return nil, nil, err
	case err != nil:
		return l, list, nil
	}
	if r.batCut > 0 {
		list = append(list, Finding{Structure: cutBAT, Offset: r.batCut, Message: "the file ends inside it"})
	}
	log := l.log()
	switch {
	case l.replay != nil:
		list = append(list, Finding{Structure: "log", Offset: log.Offset, Message: fmt.Sprintf("the image was not closed cleanly; its log has %d updates to replay", l.sequence.Updates)})
	case log.Length == 0:
		list = append(list, Finding{Structure: "log", Offset: log.Offset, Message: "no log; the image can be read, but not written safely"})
	}
	if free := l.space.free(); free > 0 {
		list = append(list, Finding{Structure: "file", Message: fmt.Sprintf("%d MiB inside it are unused", free/ondisk.MiB)})
	}
	return l, list, nil
}

// mendFirst runs the repairs of the first stage that mends something.
func (r *repairer) mendFirst(l *layer, list []Finding) (bool, error) {
	if r.headless {
		return false, nil
	}
	before := len(r.fixes)
	for _, stage := range repairs {
		for _, p := range stage {
			if mine := p.takes(list); len(mine) > 0 {
				if err := p.mend(r, l, mine); err != nil {
					return false, err
				}
			}
		}
		if len(r.fixes) > before {
			return true, nil
		}
	}
	return false, nil
}

// fixed notes a repair that changes nothing that a reader of the disk sees.
func (r *repairer) fixed(f Finding, format string, args ...any) {
	r.fixes = append(r.fixes, Fix{Finding: f, Done: fmt.Sprintf(format, args...), Effect: Harmless})
}

// hurt notes a repair after which ranges of the disk are lost or suspect.
func (r *repairer) hurt(f Finding, e Effect, ranges []DiskRange, format string, args ...any) {
	r.lossy = true
	r.fixes = append(r.fixes, Fix{Finding: f, Done: fmt.Sprintf(format, args...), Effect: e, Ranges: ranges})
}

// advise says what can be done about what is left.
func (r *repairer) advise() []string {
	o := r.o.Open
	o.Salvage, o.Lock = true, LockOff // it is locked already, by us
	if im, err := Open(r.top.path, o); err == nil {
		im.Close()
		return append(r.advice, "vhdxfs convert --skip-errors IMAGE OUTPUT copies what is readable")
	}
	if len(r.advice) > 0 {
		return r.advice
	}
	return []string{"the damaged part is needed to find any data. Restore a backup; without one, try a tool that finds files in raw data"}
}
