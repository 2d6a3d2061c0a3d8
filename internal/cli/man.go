package cli

import (
	"fmt"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A ManualPage is a page of section 8 in Markdown, as go-md2man has it.
type ManualPage struct {
	Name string // such as vhdxfs-check
	Text string
}

// helperPages are the pages of the helpers that mount(8) and umount(8) call. Other names of the first are links to it.
var helperPages = []string{"mount.vhdx", "umount.fuse.vhdxfs"}

// Manual returns the manual, which is made of what --help is made of: vhdxfs, vhdxfs-COMMAND for each command, and the
// helpers. For each page, sections returns what it has beyond the help. The same source gives the same pages.
func Manual(sections func(page string) (string, error)) ([]ManualPage, error) {
	root := newRoot(nil)
	commands := []*cobra.Command{root}
	for _, name := range helperPages {
		commands = append(commands, newHelper(name, nil))
	}
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && !c.HasSubCommands() {
			commands = append(commands, c)
		}
	}
	var pages []ManualPage
	for _, c := range commands {
		name := pageName(c)
		extra, err := sections(name)
		if err != nil {
			return nil, err
		}
		text := fmt.Sprintf("%% %q \"8\" %q \"vhdxfs\" \"System administration\"\n\n", strings.ToUpper(name), sourceDate())
		pages = append(pages, ManualPage{name, text + commandPage(c, extra) + seeAlso(c, commands)})
	}
	return pages, nil
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// sourceDate is the day of the commit that the program was built from, "" where it is not known.
func sourceDate() string {
	info, _ := debug.ReadBuildInfo()
	if info == nil {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key != "vcs.time" {
			continue
		}
		if t, err := time.Parse(time.RFC3339, s.Value); err == nil {
			return t.Format(time.DateOnly)
		}
	}
	return ""
}

// commandPage returns the page of a command in Markdown, without what else to see. The sections of extra stand
// between the exit statuses and the examples.
func commandPage(c *cobra.Command, extra string) string {
	short := strings.ToLower(c.Short[:1]) + c.Short[1:]
	page := fmt.Sprintf("# NAME\n%s - %s\n\n", pageName(c), short)
	page += "# SYNOPSIS\n" + synopsis(c) + "\n\n"
	description, mountOptions := describe(c)
	page += "# DESCRIPTION\n" + description + "\n"
	page += "# OPTIONS\n" + flagList(c)
	if mountOptions != "" {
		page += "# MOUNT OPTIONS\n" + mountOptions
	}
	page += exitStatusSection(slices.Contains(helperPages, c.Name())) + extra
	if c.Example != "" {
		page += "# EXAMPLES\n" + literal(c.Example) + "\n"
	}
	return page
}

func synopsis(c *cobra.Command) string {
	name := c.CommandPath()
	use := c.Use
	if c.HasParent() {
		use = c.Parent().CommandPath() + " " + use
	}
	s := "**" + name + "**" + emphasize(strings.TrimPrefix(use, name))
	if c.HasSubCommands() {
		s += "\n\n**" + name + "** *COMMAND* ..."
	}
	return s
}

// describe returns what the help says, without the tables in it. The table of mount options becomes a section, with
// the paragraph that leads to it; exit statuses are in a section of their own, which every page has.
func describe(c *cobra.Command) (text, mountOptions string) {
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	var paragraphs []string
	for p := range strings.SplitSeq(strings.TrimSpace(long), "\n\n") {
		intro := len(paragraphs) - 1
		switch table := strings.Trim(p, "\n") + "\n"; {
		case table == optionsHelp():
			mountOptions = paragraphs[intro] + "\n\n" + mountOptionList()
			paragraphs = paragraphs[:intro]
		case table == exitStatusHelp():
			paragraphs = paragraphs[:intro]
		case strings.HasPrefix(p, "  "):
			paragraphs = append(paragraphs, literal(p))
		default:
			paragraphs = append(paragraphs, emphasize(p))
		}
	}
	return strings.Join(paragraphs, "\n\n") + "\n", mountOptions
}

// flagList describes the flags of a command, those included that every command has.
func flagList(c *cobra.Command) string {
	c.InitDefaultHelpFlag()
	var b strings.Builder
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		term := "**--" + f.Name + "**"
		if f.Shorthand != "" {
			term = "**-" + f.Shorthand + "**, " + term
		}
		if value != "" {
			term += " *" + strings.ToUpper(value) + "*"
		}
		usage = strings.TrimSuffix(usage, "; see above") // here it is below
		fmt.Fprintf(&b, "%s\n: %s\n\n", term, emphasize(usage))
	})
	return b.String()
}

// mountOptionList describes the options of the list behind -o.
func mountOptionList() string {
	var b strings.Builder
	for _, o := range optionTable {
		if o.help == "" {
			continue
		}
		term := "**" + plain(o.name) + "**"
		if o.value != "" {
			term += "=" + emphasize(o.value)
		}
		fmt.Fprintf(&b, "%s\n: %s\n\n", term, emphasize(strings.ReplaceAll(o.help, "\n", " ")))
	}
	for _, help := range otherOptionsHelp {
		b.WriteString(plain(help) + "\n\n")
	}
	return b.String()
}

// helperStatuses are the exit statuses that mounting and unmounting can have.
var helperStatuses = []int{statusOK, statusUsage, statusSystem, statusMount}

func exitStatusSection(helper bool) string {
	var b strings.Builder
	b.WriteString("# EXIT STATUS\n")
	for _, s := range exitStatuses {
		help := s.help
		if helper {
			if !slices.Contains(helperStatuses, s.status) {
				continue
			}
			help, _, _ = strings.Cut(help, "; of check")
		}
		fmt.Fprintf(&b, "**%d**\n: %s\n\n", s.status, plain(help))
	}
	return b.String()
}

// seeAlso refers the pages of the program to each other, and to those of the system.
func seeAlso(c *cobra.Command, commands []*cobra.Command) string {
	var list []string
	for _, other := range commands {
		// A page of one command does not list all the others.
		if other != c && !(c.HasParent() && other.HasParent()) {
			list = append(list, "**"+pageName(other)+"**(8)")
		}
	}
	if !c.HasParent() {
		list = append(list, "**fusermount3**(1)", "**fstab**(5)", "**systemd.mount**(5)", "**losetup**(8)", "**mount**(8)", "**umount**(8)")
	}
	return "# SEE ALSO\n" + strings.Join(list, ", ") + "\n"
}

// literal makes lines a block that is shown as it stands.
func literal(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("    " + strings.TrimPrefix(line, "  "))
	}
	return b.String()
}

// markup is what Markdown would take for something else than text.
var markup = strings.NewReplacer(`\`, `\\`, "*", `\*`, "_", `\_`, "`", "\\`", "<", `\<`, "[", `\[`, "]", `\]`)

func plain(text string) string { return markup.Replace(text) }

// placeholder is a word in capitals that stands for what the user gives.
var placeholder = regexp.MustCompile(`\b(IMAGE|MOUNTPOINT|DIRECTORY|LIST|SIZE|NAME|NUMBER|SECONDS|OCTAL|FILE|DIR|TYPE|PATH|DEVICE|USER|TEXT)\b`)

// emphasize shows placeholders as the manual does.
func emphasize(text string) string { return placeholder.ReplaceAllString(plain(text), "*$1*") }
