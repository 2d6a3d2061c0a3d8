package mountoption

import (
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// ParseRemount reads what a remount asks for, on top of what the mount m has: its flags, and the options that were given to its
// server. Options that are neither flags nor among those are returned as changed. An error is a *UsageError.
func ParseRemount(lists []string, m *mountinfo.Info, given []string) (o *Options, changed []string, err error) {
	vfs := strings.Split(m.VFSOptions, ",")
	o = &Options{ReadOnly: slices.Contains(vfs, "ro")}
	if !slices.ContainsFunc(lists, isWhole) {
		o.Mount.Flags = Flags(m)
	}
	has := slices.Concat(given, strings.Split(m.Options, ","), vfs)
	for _, list := range lists {
		words, err := Split(list)
		if err != nil {
			return nil, nil, usage("-o %s: %w", list, err)
		}
		for _, word := range words {
			name, _, _ := strings.Cut(word, "=")
			switch t := find(name); {
			case t != nil && t.about&remountable != 0:
				err = o.apply(word, Mount)
			case t != nil && t.about&others != 0, isForeign(name), slices.Contains(has, word):
			case t == nil:
				err = o.apply(word, Mount|Image) // which says what is wrong with it
			default:
				changed = append(changed, word)
			}
			if err != nil {
				return nil, nil, err
			}
		}
	}
	return o, changed, nil
}

// isWhole reports whether a list has all options of the mount, as mount(8) takes them from the mount table. It leaves
// out then what is to go: noexec for exec, say.
func isWhole(list string) bool { return strings.Contains(","+list, ",user_id=") }

// Flags returns the flags of mount(2) that m has, without MS_RDONLY.
func Flags(m *mountinfo.Info) uintptr {
	var o Options
	for _, word := range strings.Split(m.Options, ",") {
		if t := find(word); t != nil && t.about&remountable != 0 {
			_ = t.set(&o, "") // a flag has no value that could be wrong
		}
	}
	return o.Mount.Flags
}
