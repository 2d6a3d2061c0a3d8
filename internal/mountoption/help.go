package mountoption

import "strings"

// An Option is an option as the help shows it.
type Option struct {
	Name  string
	Value string // what stands behind the "=", such as FILE or on|off; "" for an option without a value
	Help  string
}

// Explained returns the options that the help explains, in its order. Notes tells of the others.
func Explained() (list []Option) {
	for _, t := range table {
		if t.help != "" {
			list = append(list, Option{t.name, t.value, t.help})
		}
	}
	return list
}

// Notes explain the options that Explained leaves out, a sentence or two for each group.
func Notes() []string {
	return []string{
		"nosuid, nodev, noexec, noatime and the like, and their opposites, work as in mount(8). nosuid and nodev are the default.",
		"auto, noauto, user, users, nofail, _netdev, comment= and x-* are accepted for fstab and ignored.",
	}
}

// Complete returns what the list of options that begins with typed can go on with: the names of options about what is asked
// for, and behind a name those of its values that are words. Behind a tab stands the help.
func Complete(typed string, about Scope) (words []string) {
	done := typed[:strings.LastIndexByte(typed, ',')+1]
	for _, t := range table {
		if t.about&about == 0 || t.help == "" {
			continue
		}
		word := done + t.name
		if t.value != "" {
			word += "="
		}
		if t.value == "" || !strings.HasPrefix(typed, word) {
			words = append(words, word+"\t"+t.help)
			continue
		}
		for v := range strings.SplitSeq(t.value, "|") {
			if v == strings.ToLower(v) { // others, such as FILE, stand for something
				words = append(words, word+v)
			}
		}
	}
	return words
}

// names lists the options about what is asked for, those of other programs left out.
func names(about Scope) []string {
	var names []string
	for _, t := range table {
		if t.about&about != 0 {
			names = append(names, t.name)
		}
	}
	return names
}
