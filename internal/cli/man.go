package cli

import (
	"fmt"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vhdxfs/vhdxfs/internal/mountoption"
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
	page += "# DESCRIPTION\n" + describe(c) + "\n"
	if c.HasSubCommands() {
		page += "# COMMANDS\n" + commandList(c)
	}
	page += "# OPTIONS\n" + flagList(c)
	if c.HasSubCommands() || c.Name() == helperPages[0] {
		page += "# MOUNT OPTIONS\nSeparate the options after **-o** with commas. Put a value that contains a comma in double quotes.\n\n" + mountOptionList()
	}
	page += exitStatusSection(statusesOf(c.Name())) + extra
	return page + "# EXAMPLES\n" + literal(c.Example) + "\n"
}

// commandList lists the commands by their groups.
func commandList(root *cobra.Command) string {
	var b strings.Builder
	for _, g := range commandGroups {
		fmt.Fprintf(&b, "### %s\n", g.title)
		for _, c := range root.Commands() {
			if c.GroupID == g.id && !c.Hidden {
				fmt.Fprintf(&b, "**%s**\n: %s.\n\n", c.Name(), emphasize(c.Short))
			}
		}
	}
	return b.String()
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

// describe returns the description that the help has.
func describe(c *cobra.Command) string {
	var paragraphs []string
	for p := range strings.SplitSeq(strings.TrimSpace(description(c)), "\n\n") {
		if strings.HasPrefix(p, "  ") {
			paragraphs = append(paragraphs, literal(p))
		} else {
			paragraphs = append(paragraphs, emphasize(p))
		}
	}
	return strings.Join(paragraphs, "\n\n") + "\n"
}

// flagList describes the flags of a command, those included that every command has.
func flagList(c *cobra.Command) string {
	c.InheritedFlags() // which has cobra gather them
	var b strings.Builder
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		term := "**--" + f.Name + "**"
		if f.Shorthand != "" {
			term = "**-" + f.Shorthand + "**, " + term
		}
		if value := flagValue(f); value != "" {
			term += " *" + value + "*"
		}
		fmt.Fprintf(&b, "%s\n: %s\n\n", term, emphasize(flagHelp(f)))
	})
	return b.String()
}

// mountOptionList describes the options of the list behind -o.
func mountOptionList() string {
	var b strings.Builder
	for _, o := range mountoption.Explained() {
		term := "**" + plain(o.Name) + "**"
		if o.Value != "" {
			term += "=" + emphasize(o.Value)
		}
		fmt.Fprintf(&b, "%s\n: %s\n\n", term, emphasize(o.Help))
	}
	for _, note := range mountoption.Notes() {
		b.WriteString(plain(note) + "\n\n")
	}
	return b.String()
}

func exitStatusSection(statuses []exitStatus) string {
	var b strings.Builder
	b.WriteString("# EXIT STATUS\n")
	for _, s := range statuses {
		fmt.Fprintf(&b, "**%d**\n: %s\n\n", s.status, plain(s.help))
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
