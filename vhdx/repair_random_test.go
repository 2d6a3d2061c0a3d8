package vhdx

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/vhdxfs/vhdxfs/vhdx/ondisk"
)

// After any change of the bytes that describe an image, a repair ends with a sound image, or with one that was not
// touched; and what it did can be undone.
func TestRepairOfRandomDamage(t *testing.T) {
	specs := []spec{
		{diskSize: 20 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.FullyPresent}, {3, ondisk.FullyPresent}, {7, ondisk.Zero}, {9, ondisk.Unmapped}, {11, ondisk.FullyPresent}}},
		{typ: Differencing, diskSize: 20 * ondisk.MiB, blocks: []blockSpec{{0, ondisk.PartiallyPresent}, {3, ondisk.FullyPresent}, {7, ondisk.Zero}, {9, ondisk.PartiallyPresent}}},
		{typ: Fixed, diskSize: 5*ondisk.MiB + 512, blocks: []blockSpec{{0, ondisk.FullyPresent}, {1, ondisk.FullyPresent}, {2, ondisk.FullyPresent}, {3, ondisk.FullyPresent}, {4, ondisk.FullyPresent}, {5, ondisk.FullyPresent}}},
		{diskSize: 64 * ondisk.MiB, blockSize: 8 * ondisk.MiB, sectorSize: 4096, blocks: []blockSpec{{0, ondisk.FullyPresent}, {2, ondisk.FullyPresent}},
			items: []rawItem{{otherGUID, 0, []byte("system")}, {otherGUID, ondisk.ItemIsUser, []byte("user")}}},
	}
	good := make([]*image, len(specs))
	for i, s := range specs {
		good[i] = build(s)
	}
	outcomes := map[string]int{}
	for seed := range uint64(fewer(600)) {
		rng := rand.New(rand.NewPCG(seed, 3))
		im := good[seed%uint64(len(good))]
		damaged := &image{memFile: im.clone(), spec: im.spec, geo: im.geo, items: im.items, bitmaps: im.bitmaps, rng: rng}
		for range 1 + rng.IntN(4) {
			damaged.harm(rng)
		}
		outcome, err := repairAndUndo(t, damaged.memFile)
		if err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		outcomes[outcome]++
	}
	t.Log(outcomes)
	for _, o := range []string{"repaired", "refused"} {
		if outcomes[o] < fewer(100) {
			t.Errorf("%d images were %s", outcomes[o], o)
		}
	}
}

// harm does one kind of damage to the image.
func (im *image) harm(rng *rand.Rand) {
	garble := func(b []byte) {
		switch i := rng.IntN(len(b)); rng.IntN(3) {
		case 0:
			b[i] ^= 1 << rng.IntN(8)
		case 1:
			b[i] = byte(rng.Uint32())
		default:
			clear(b[i:min(i+8, len(b))])
		}
	}
	entry := func() int64 { return rng.Int64N(im.geo.BATEntries() + 1) }
	switch rng.IntN(9) {
	case 0:
		im.change(ondisk.HeaderOffsets[rng.IntN(2)], 80, garble)
	case 1: // a writer's error: the checksum is right
		off := ondisk.HeaderOffsets[rng.IntN(2)]
		im.stamp([2]int64{off, off}, ondisk.HeaderSize, func(b []byte) { garble(b[8:80]) })
	case 2:
		off := ondisk.RegionTableOffsets[rng.IntN(2)]
		im.change(off, 100, garble)
		if rng.IntN(2) == 0 {
			im.stamp([2]int64{off, off}, ondisk.RegionTableSize, func([]byte) {})
		}
	case 3:
		im.change(im.metaOff+32, 32*8, garble)
	case 4, 5:
		im.change(im.batOff+8*entry(), 8, garble)
	case 6: // one entry in the place of another
		copy := im.read(im.batOff+8*entry(), 8)
		im.write(copy, im.batOff+8*entry())
	case 7:
		size := im.size - rng.Int64N(im.size/3)
		if rng.IntN(2) == 0 {
			size = im.size + rng.Int64N(5*ondisk.MiB)
		}
		im.Truncate(size)
	default:
		im.logPages(im.batOff)
		if rng.IntN(2) == 0 {
			im.change(im.logOff, 64, garble)
			b := im.read(im.logOff, 8192)
			im.write(ondisk.LE.AppendUint32(nil, ondisk.Checksum(b, 4)), im.logOff+4)
		}
	}
}

// repairAndUndo repairs the image in f, if that can be done, and takes the repair back.
func repairAndUndo(t *testing.T, f *memFile) (outcome string, err error) {
	t.Helper()
	file := f.clone()
	r := planLeft(t, file)
	switch {
	case file.changes.Load() > 0:
		return "", fmt.Errorf("the plan changed the file")
	case len(r.left) > 0:
		return "refused", nil
	case !r.d.changed():
		return "sound", nil
	}
	undo := &undoDouble{}
	if _, err := r.apply(undo); err != nil {
		return "", err
	}
	if again := planLeft(t, file); len(again.left) > 0 || !again.onlyLeaks() {
		return "", fmt.Errorf("repairs %+v, and afterwards %+v, %+v", r.fixes, again.left, again.fixes)
	}
	u, _, err := undo.open()
	if err != nil {
		return "", err
	}
	if _, err := u.restore(t.Context(), file, false); err != nil {
		return "", err
	}
	if !sameBytes(file, f) {
		return "", fmt.Errorf("the undo file did not bring back what was there, after %+v", r.fixes)
	}
	return "repaired", nil
}
