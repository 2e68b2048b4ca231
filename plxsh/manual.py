"""The man pages, made from the help of the commands; only scripts/manpages.py needs this.

There is a page for `plxsh`, one for each word that can stand behind it (a group has all
its commands on one page), and one for each original tool.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Final

import click

from plxsh.classic import TOOLS, mkfs
from plxsh.cli import cli
from plxsh.commands.help import SHELL_HELP
from plxsh.context import CONFIG_FILES, DEFAULT_STORE, Settings
from plxsh.groups import HELP_OPTIONS, Command
from plxsh.roff import Page, Prose, bold, italic, usage

_GLOBAL: Final = (
    "The global options, the forms of VDIs, snapshots and sizes, and the interactive shell are"
    " described in plxsh(1)."
)
_ORIGINAL: Final = (
    "This is one of the original tools: its arguments and its output do not change. {}(1) does"
    " the same and more."
)
_SCRIPTS: Final = (("-c", "LINES"), ("-f", "FILE"))
_EXAMPLES: Final = ("plxsh", "plxsh vdi list", "plxsh -o json vdi list", "plxsh vdi create --help")

_DAEMONS: Final = frozenset(("parallaxd", "plxlockmaster"))
"""Their pages are in section 8, those of all others in section 1."""

_SUCCESSORS: Final = {
    "parallax-mkfs": "store",
    "parallaxd": "tap",
    "plxlockmaster": "lock",
    "vdi_create": "vdi",
    "vdi_fill": "vdi",
    "vdi_list": "vdi",
    "vdi_snap": "snap",
    "vdi_snap_delete": "snap",
    "vdi_snap_list": "snap",
    "vdi_snap_offline": "snap",
    "vdi_tree": "tree",
    "vdi_validate": "vdi",
}
"""The command of `plxsh` that does what an original tool does, and more."""

_ENVIRONMENT: Final = {
    "PARALLAX_PAGER": "The pager for long output, before that of the configuration.",
    "PAGER": "The pager when neither names one; without it, less.",
    "NO_COLOR": "When it is set and not empty, nothing is coloured.",
    "TERM": "When it is dumb, nothing is coloured and nothing is drawn over.",
    "COLUMNS": "The width of the terminal, in place of what it says itself.",
    "PARALLAX_LOCK_KEY": "A file with the key that the lock master wants.",
    "PARALLAX_LOCK_TLS": "A folder with the certificates for the lock master.",
    "PARALLAX_RUN_DIR": "Where the sockets of the tap are, in place of the folders below.",
    "PARALLAX_STATE_DIR": "Where a lock master keeps state and key, in place of the folders below.",
    "XDG_RUNTIME_DIR": "Where the Unix socket of the tap is, for users other than root.",
    "XDG_STATE_HOME": "Where the history of the shell is, in place of ~/.local/state; likewise the"
    " state and the key of a lock master, for users other than root.",
    "LISTEN_FDS": "How many sockets systemd has opened for the tap.",
    "JOURNAL_STREAM": "What tells the tap that its log goes to the journal of systemd.",
}
_TOOL_ENVIRONMENT: Final = {
    "PARALLAX_STORE": "The blockstore to work on: a file or a device.",
    "PARALLAX_CACHE": "none: past the page cache, for hosts that share a device; else host.",
    "PARALLAX_CONFIG": "The configuration to read, in place of the files below.",
    "PARALLAX_LOCK_MASTER": "The lock master of several hosts: HOST:PORT or unix:PATH.",
    "PARALLAX_LOCK_KEY": "A file with the key that the lock master wants.",
    "PARALLAX_LOCK_TLS": "A folder with the certificates for the lock master.",
    "PARALLAX_RUN_DIR": "Where the sockets of the tap are, in place of the folders below.",
    "PARALLAX_STATE_DIR": "Where a lock master keeps state and key, in place of the folders below.",
}
_FILES: Final = {
    DEFAULT_STORE: "The blockstore when nothing else names one.",
    ", ".join(CONFIG_FILES): "The configuration: the first of these files that there is.",
}
_SOCKETS: Final = {
    "/run/parallax/nbd.sock, $XDG_RUNTIME_DIR/parallax/nbd.sock": (
        "Where the tap listens: the first for root, the other for users."
    ),
}
_STATE: Final = {
    "/var/lib/parallax/lock_master.epoch, ~/.local/state/parallax/lock_master.epoch": (
        "What must outlive a restart of the lock master: the first for root, the other for users."
    ),
    "/var/lib/parallax/lock_master.key, ~/.local/state/parallax/lock_master.key": (
        "The key of a lock master that was given none: for root and its user, who find it there."
    ),
}
_PLACES: Final = {"parallaxd": _SOCKETS, "plxlockmaster": _STATE}
_HISTORY: Final = {"~/.local/state/parallax/history": "The lines typed into the shell."}
_NOUNS: Final = frozenset(("A", "VDI"))
"""Upper-case words that stand for themselves in sentences."""


@dataclass(frozen=True, slots=True)
class Manual:
    """What all pages of one version have in common.

    Args:
        version: of the release.
        date: of the release, empty for what is not released.
    """

    version: str
    date: str

    def pages(self) -> dict[str, str]:
        """Return the text of every page by its file name."""
        found = [self._plxsh(), *self._words(), *self._tools()]
        return dict(found)

    # -- the three kinds of pages ------------------------------------------------------

    def _plxsh(self) -> tuple[str, str]:
        page, prose = self._begin(cli, "plxsh")
        start = f"{bold('plxsh')} [{italic('options')}]"
        script = [f"{start} {bold(option)} {italic(word)}" for option, word in _SCRIPTS]
        page.lines([start, f"{start} {italic('command')} [...]", *script])
        _describe(page, prose, cli)
        page.heading("OPTIONS")
        _options(page, prose, cli)
        page.item(", ".join(map(bold, HELP_OPTIONS)), "Show help, here or behind a command.")
        page.heading("COMMANDS")
        page.paragraph(prose("Each word has a page of its own, such as plxsh-vdi(1)."))
        for word, command in _commands(cli):
            for path, one in _below(word, command).items():
                page.item(_line(path, one), prose(f"{_purpose(one)}."))
        page.heading("INTERACTIVE SHELL")
        _shell(page, prose)
        _exit_status(page, prose)
        page.heading("ENVIRONMENT")
        heard = [p for p in cli.params if isinstance(p, click.Option) and p.envvar]
        options = {str(option.envvar): f"As {option.opts[-1]}." for option in heard}
        _terms(page, prose, options | _ENVIRONMENT)
        page.heading("FILES")
        _files(page, prose, _FILES | _SOCKETS | _STATE | _HISTORY)
        _examples(page, _EXAMPLES)
        _see_also(page, [*(f"plxsh-{word}" for word, _ in _commands(cli)), *TOOLS])
        return "plxsh.1", page.text()

    def _words(self) -> Iterator[tuple[str, str]]:
        """Make a page for each word that can stand behind `plxsh`."""
        words = [word for word, _ in _commands(cli)]
        for word, command in _commands(cli):
            page, prose = self._begin(command, f"plxsh-{word}")
            below = _below(word, command)
            page.lines(_line(path, one) for path, one in below.items())
            _describe(page, prose, command)
            page.paragraph(prose(_GLOBAL))
            if isinstance(command, click.Group):
                page.heading("COMMANDS")
                for path, one in below.items():
                    page.subheading(_line(path, one))
                    _paragraphs(page, prose, one)
                    _options(page, prose, one)
            elif _shown_options(command):
                page.heading("OPTIONS")
                _options(page, prose, command)
            _exit_status(page, prose)
            _examples(page, [line for one in below.values() for line in _lines(one)])
            _see_also(page, ["plxsh", *(f"plxsh-{other}" for other in words if other != word)])
            yield f"plxsh-{word}.1", page.text()

    def _tools(self) -> Iterator[tuple[str, str]]:
        """Make a page for each original tool."""
        for name, tool in TOOLS.items():
            page, prose = self._begin(tool, name)
            page.paragraph(_line(name, tool))
            _describe(page, prose, tool)
            successor = f"plxsh-{_SUCCESSORS[name]}"
            page.paragraph(prose(_ORIGINAL.format(successor)))
            _exit_status(page, prose)
            if tool is not mkfs:  # which names its store
                page.heading("ENVIRONMENT")
                _terms(page, prose, _TOOL_ENVIRONMENT)
                page.heading("FILES")
                _files(page, prose, _FILES | _PLACES.get(name, {}))
            _examples(page, tool.examples)
            _see_also(page, ["plxsh", successor])
            yield f"{name}.{_section(name)}", page.text()

    def _begin(self, command: click.Command, name: str) -> tuple[Page, Prose]:
        """Begin a page: its title, NAME, and the heading of SYNOPSIS."""
        page = Page(name, _section(name), self.date, f"Parallax {self.version}")
        prose = Prose(_names(), _replaced(command) - _NOUNS)
        page.heading("NAME")
        page.name(name, _purpose(command))
        page.heading("SYNOPSIS")
        return page, prose


# -- what the pages need to know of commands -----------------------------------------


def _section(name: str) -> int:
    return 8 if name in _DAEMONS else 1


def _context(command: click.Command, path: str = "") -> click.Context:
    # A command keeps the help option that it makes first, so it must be the one it has at work.
    return click.Context(command, info_name=path, obj=Settings())


def _commands(group: click.Group) -> list[tuple[str, click.Command]]:
    """Return the commands of a group that its help shows, by name."""
    context = _context(group)
    found = [(name, group.get_command(context, name)) for name in group.list_commands(context)]
    return [(name, one) for name, one in found if one is not None and not one.hidden]


def _below(word: str, command: click.Command) -> dict[str, click.Command]:
    """Return the commands that begin with a word, by how they are typed."""
    if isinstance(command, click.Group):
        return {f"plxsh {word} {name}": one for name, one in _commands(command)}
    return {f"plxsh {word}": command}


def _lines(command: click.Command) -> Sequence[str]:
    """Return the examples of a command."""
    return command.examples if isinstance(command, Command) else ()


def _names() -> set[str]:
    """Return every first word of a command line, and the names of the pages."""
    words = [word for word, _ in _commands(cli)]
    return {"plxsh", *words, *(f"plxsh-{word}" for word in words), *TOOLS}


def _replaced(command: click.Command) -> set[str]:
    """Return the words that stand for something else in the help of a command."""
    below = [one for _, one in _commands(command)] if isinstance(command, click.Group) else []
    metavars = [
        param.make_metavar(_context(one)) for one in (command, *below) for param in one.params
    ]
    return set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", " ".join(metavars)))


def _help(command: click.Command) -> list[str]:
    """Return the paragraphs of a help text."""
    return cleandoc(command.help or "").split("\f")[0].rstrip().split("\n\n")


def _purpose(command: click.Command) -> str:
    """Return the first paragraph of a help text without its full stop."""
    return " ".join(_help(command)[0].split()).removesuffix(".")


def _line(path: str, command: click.Command) -> str:
    """Return how a command is typed."""
    pieces = command.collect_usage_pieces(_context(command, path))
    pieces = [piece for piece in pieces if piece != "[OPTIONS]"]
    options = [f"[{italic('options')}]"] if _shown_options(command) else []
    return " ".join([bold(path), *options, *map(usage, pieces)])


def _shown_options(command: click.Command) -> list[tuple[click.Option, str]]:
    """Return the options that help shows, with what it says of them."""
    context = _context(command)
    found = []
    for param in command.params:
        record = param.get_help_record(context)
        if isinstance(param, click.Option) and record is not None:
            found.append((param, record[1]))
    return found


# -- parts of pages ------------------------------------------------------------------


def _describe(page: Page, prose: Prose, command: click.Command) -> None:
    """Write DESCRIPTION."""
    page.heading("DESCRIPTION")
    _paragraphs(page, prose, command)


def _paragraphs(page: Page, prose: Prose, command: click.Command) -> None:
    """Write the help text, without the list of exit statuses."""
    for paragraph in _help(command):
        if paragraph.startswith("\b\n"):  # lines that click leaves as they are
            page.verbatim(paragraph.split("\n")[1:])
        elif not paragraph.startswith(_STATUSES):
            page.paragraph(prose(" ".join(paragraph.split())))


def _options(page: Page, prose: Prose, command: click.Command) -> None:
    """Write what each option does."""
    for option, text in _shown_options(command):
        names = ", ".join(bold(name) for name in (*option.opts, *option.secondary_opts))
        if not option.is_flag:
            names += f" {usage(option.make_metavar(_context(command)))}"
        page.item(names, prose(_EXTRA.sub(_extra, " ".join(text.split()))))


def _extra(found: re.Match[str]) -> str:
    """Return what click puts in brackets as sentences."""
    parts = found[1].replace("env var:", "environment:").split("; ")
    return "".join(f" {part[0].upper()}{part[1:]}." for part in parts)


def _shell(page: Page, prose: Prose) -> None:
    """Write the help of the shell: paragraphs, tables of two columns, and other lines."""
    for block in SHELL_HELP.rstrip().split("\n\n"):
        lines = block.split("\n")
        rows = [_ROW.match(line) for line in lines]
        if not block.startswith("  "):
            page.paragraph(prose(" ".join(lines)))
        elif not all(rows):
            page.verbatim(line.removeprefix("  ") for line in lines)
        else:
            terms: list[list[str]] = []
            for row in filter(None, rows):
                if row[1]:
                    terms.append([row[1], row[2]])
                else:
                    terms[-1][1] += f" {row[2]}"
            for typed, what in terms:
                page.item(bold(typed), prose(what))


_ROW: Final = re.compile(r"  (?:(\S.*?)  +| {10,})(\S.*)")
_EXTRA: Final = re.compile(r" \[((?:default|env var|required)\b[^]]*)\]")
_STATUSES: Final = "Exit status: "


def _exit_status(page: Page, prose: Prose) -> None:
    """Write the list of exit statuses that `plxsh --help` has, one by one."""
    [statuses] = [text for text in _help(cli) if text.startswith(_STATUSES)]
    page.heading("EXIT STATUS")
    listed = " ".join(statuses.split()).removeprefix(_STATUSES).rstrip(".").split(", ")
    pairs = [status.split(" ", 1) for status in listed]
    page.items((bold(number), prose(f"{what[0].upper()}{what[1:]}.")) for number, what in pairs)


def _terms(page: Page, prose: Prose, terms: Mapping[str, str]) -> None:
    """Write what variables mean."""
    for name, what in terms.items():
        page.item(bold(name), prose(what))


def _files(page: Page, prose: Prose, files: Mapping[str, str]) -> None:
    """Write what files are for."""
    for names, what in files.items():
        page.item(", ".join(italic(name) for name in names.split(", ")), prose(what))


def _examples(page: Page, lines: Sequence[str]) -> None:
    if lines:
        page.heading("EXAMPLES")
        page.verbatim(lines)


def _see_also(page: Page, names: Sequence[str]) -> None:
    """Write references to other pages."""
    page.heading("SEE ALSO")
    page.references((name, _section(name)) for name in names)
