// Mutate breaks one place of a package after the other and runs tests each time. What no test notices is not tested. It is
// run by hand, because it takes minutes to hours.
//
//	go run ./internal/scripts/mutate ./journal ./cache
//	go run ./internal/scripts/mutate -n 300 -at commit.go,dirty.go -results FILE ./vhdx
//	go run ./internal/scripts/mutate -results FILE -again -long ./vhdx
//
// All mutants of a package are in one test binary, which an environment variable tells which of them to run, so a mutant
// costs no build (selection.go). Each test runs once alone to see which lines it reaches. A mutant then gets only the tests
// that reach its line, the fast ones first (suite.go). The files of the package stay as they are: the go command gets the
// broken ones by -overlay. A mutant is noticed where a test fails or hangs. docs/mutants.md has the survivors.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

var (
	count       = flag.Int("n", 0, "how many mutants to try, chosen by the seed; 0 is all")
	seed        = flag.Uint64("seed", 1, "chooses the mutants")
	at          = flag.String("at", "", "only mutants at these places, such as edit.go,dirty.go:94")
	tests       = flag.String("tests", "", "run the tests of this package, such as ./vhdx; the default is the mutant's own package")
	run         = flag.String("run", "", "only these tests, as for go test")
	skip        = flag.String("skip", "", "not these tests, as for go test")
	most        = flag.Duration("most", 0, "run only the fastest tests that reach a mutant, such as 10s of them; 0 is all")
	long        = flag.Bool("long", false, "run the tests without -short")
	resultsFile = flag.String("results", "", "keep the results in this file; mutants that are in it are not tried again")
	again       = flag.Bool("again", false, "try only mutants that survived or were not reached according to -results")
	list        = flag.Bool("list", false, "print the mutants, and run nothing")
)

func main() {
	flag.Parse()
	survivors, err := mutate(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(2)
	}
	if survivors > 0 {
		os.Exit(1)
	}
}

// mutate tries the chosen mutants of all packages, and returns how many survive.
func mutate(dirs []string) (survivors int, err error) {
	results, err := openResults(*resultsFile)
	if err != nil {
		return 0, err
	}
	defer results.close()

	var chosen []*mutant
	for i := range dirs {
		dirs[i] = filepath.Clean(dirs[i])
		found, err := mutantsOf(dirs[i])
		if err != nil {
			return 0, err
		}
		chosen = append(chosen, found...)
	}
	chosen = slices.DeleteFunc(chosen, func(m *mutant) bool { return !m.isAt(*at) })
	if *count > 0 && *count < len(chosen) {
		rng := rand.New(rand.NewPCG(*seed, 0))
		rng.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
		chosen = chosen[:*count]
	}
	chosen = slices.DeleteFunc(chosen, func(m *mutant) bool {
		before, tried := results.of[m.key()]
		return tried && !*again || *again && before != survived && before != unreached
	})
	if *list {
		for _, m := range chosen {
			fmt.Println(m)
		}
		return 0, nil
	}

	if *tests != "" {
		if err := try(filepath.Clean(*tests), dirs, chosen, results); err != nil {
			return 0, err
		}
	} else {
		for _, own := range byPackage(chosen) {
			if err := try(own[0].dir, []string{own[0].dir}, own, results); err != nil {
				return 0, err
			}
		}
	}
	fmt.Printf("%d mutants: %v\n", len(chosen), results.tally)
	return results.tally[survived] + results.tally[unreached], nil
}

// atOnce limits how many mutants are in one binary, because the compiler needs memory for each.
const atOnce = 1500

// byPackage returns the mutants of each package, sorted by their places.
func byPackage(mutants []*mutant) [][]*mutant {
	sorted := slices.SortedFunc(slices.Values(mutants), func(a, b *mutant) int {
		return cmp.Or(strings.Compare(a.dir, b.dir), strings.Compare(a.file, b.file), a.from-b.from)
	})
	var all [][]*mutant
	for i, m := range sorted {
		if i == 0 || m.dir != sorted[i-1].dir {
			all = append(all, nil)
		}
		all[len(all)-1] = append(all[len(all)-1], m)
	}
	return all
}

// try runs the tests of one package on mutants of others.
func try(from string, dirs []string, mutants []*mutant, results *results) error {
	s, err := newSuite(from, dirs)
	if err != nil {
		return err
	}
	defer s.close()
	for _, own := range byPackage(mutants) {
		for part := range slices.Chunk(own, atOnce) {
			if err := s.build(part[0].dir, part); err != nil {
				return err
			}
			for _, m := range part {
				result, by, err := s.try(m)
				if err != nil {
					return err
				}
				if err := results.add(m, result, by); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
