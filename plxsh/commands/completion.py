"""`plxsh completion`: the scripts that bash, zsh and fish read, and what these ask for.

The scripts know no commands. At every Tab they call the hidden `completion answer`, which
takes the line apart and asks `plxsh.completer`, as the shell of plxsh does. Files they
find themselves: people know how their shell does that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from plxsh.context import CACHES, Settings, cache_mode
from plxsh.grammar import Reading, read
from plxsh.groups import Group

if TYPE_CHECKING:
    from plxsh.completer import Candidate

_PATIENCE: Final = 2.0
"""Seconds that a store may take to be read: someone waits, but no prompt is stuck."""

_ESCAPED: Final[dict[str, tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]]] = {
    "": (re.compile(r"([^\w./:@%+=,-])"), r"\\\1"),
    '"': (re.compile(r'(["\\$`])|(!)'), lambda found: rf"\{found[1]}" if found[1] else r'"\!"'),
    "'": (re.compile("'"), r"'\\''"),
}
"""What is quoted in a word of bash, and how, by the quote that is open there.

In double quotes a `!` that bash would look up in its history cannot be: it stands outside.
"""


@click.group("completion", cls=Group)
def completion() -> None:
    """Print what makes bash, zsh or fish complete commands.

    It is for 'plxsh' and for the original tools. Names come from the store that the line,
    the environment or the configuration names.
    """


@completion.command(examples=["plxsh completion bash > plxsh.bash"])
def bash() -> None:
    """Print the script for bash.

    This line in ~/.bashrc reads it: eval "$(plxsh completion bash)"

    With bash-completion it can also be a file that is read when it is needed:
    ~/.local/share/bash-completion/completions/plxsh
    """
    _print_script("bash")


@completion.command(examples=["plxsh completion zsh > _plxsh"])
def zsh() -> None:
    """Print the script for zsh.

    This line in ~/.zshrc, behind compinit, reads it: eval "$(plxsh completion zsh)"

    It can also be a file _plxsh in a folder of $fpath.
    """
    _print_script("zsh")


@completion.command(examples=["plxsh completion fish > plxsh.fish"])
def fish() -> None:
    """Print the script for fish.

    This line in ~/.config/fish/config.fish reads it: plxsh completion fish | source

    It can also be a file plxsh.fish in ~/.config/fish/completions, or for every user in
    /usr/share/fish/vendor_completions.d.
    """
    _print_script("fish")


def _print_script(shell: str) -> None:
    from importlib import resources  # takes its time, and every Tab imports this module

    script = resources.files("plxsh") / "completions" / f"plxsh.{shell}"
    click.echo(script.read_text(encoding="utf-8"), nl=False)


@completion.command(hidden=True)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.argument("asked", nargs=-1)
def answer(shell: str, asked: Sequence[str]) -> None:
    """Print what can stand at the cursor; nothing if anything is wrong.

    The first line is `files`, with nothing behind it, or `words`, with one in each line.
    ASKED is for bash the line up to the cursor and the end of it that will be replaced, for
    zsh and fish the words up to the cursor without quotes. They are told what stands beside
    a word, too, behind a tab.
    """
    with suppress(Exception):  # even a bug must not write over what someone types
        lines = _for_bash(*asked) if shell == "bash" else _for_others(*asked)
        click.echo("\n".join(lines), nl=False)


def _for_others(*asked: str) -> list[str]:
    """Return the answer to the words of a command, the last of which is at the cursor."""
    *words, fragment = asked
    kind, found = _candidates(words, fragment)
    return [kind, *(f"{one.text}\t{one.meta}" for one in found)] if kind else []


def _for_bash(line: str, replaced: str) -> list[str]:
    """Return the answer to a line; its words are quoted as the one at the cursor is."""
    from plxsh.language import split, tokens

    found = tokens(line)
    words, others = [*split(found)][-1]
    last = found[-1]
    if last in others:  # the file of a redirection, or a comment
        return ["files"] if last.kind == "word" or last.text in (">", ">>", "<") else []
    raw = fragment = ""
    if last.kind == "word" and last.end == len(line):
        raw, fragment = line[last.start :], last.text
        words = words[:-1]
    if not raw.endswith(replaced):
        return []
    kind, candidates = _candidates([word.text for word in words], fragment)
    before = raw.removesuffix(replaced)
    special, escaped = _ESCAPED["" if last.closed else before[-1]]
    kept = "".join(token.text for token in tokens(before))
    texts = [c.text.removeprefix(kept) for c in candidates if c.text.startswith(kept)]
    return [kind, *(special.sub(escaped, text) for text in texts)] if kind else []


def _candidates(words: Sequence[str], fragment: str) -> tuple[str, list[Candidate]]:
    """Return what stands in the first line of an answer, empty for no answer, and the rest."""
    from plxsh.completer import complete_prefix
    from plxsh.names import Names

    program, *given = [os.path.expanduser(os.path.expandvars(word)) for word in words]
    fragment = os.path.expandvars(fragment)
    command = _command(os.path.basename(program))
    settings = Settings()
    options = _options(read(command, given, settings).context)
    settings.store = options.get("store") or os.environ.get("PARALLAX_STORE", "")
    cache = options.get("cache") or os.environ.get("PARALLAX_CACHE")
    settings.cache = cache_mode(cache) if cache in CACHES else None
    settings.configure(options.get("config") or os.environ.get("PARALLAX_CONFIG"))
    settings.names = Names(settings.store, _PATIENCE, settings.caching)
    asked = _param_at(read(command, given, settings), fragment)
    if asked is not None and isinstance(asked.type, click.Path):
        return "files", []
    found = _shown(complete_prefix(command, settings, given, fragment))
    if len(found) == 1 and found[0].more:  # go on to what it may become
        found = _shown(complete_prefix(command, settings, given, found[0].text)) or found
    return "words" if found else "", found


def _options(context: click.Context | None) -> dict[str, str]:
    """Return the last word that each parameter was given, the innermost command's first."""
    given: dict[str, str] = {}
    while context is not None:
        given = {name: words[-1] for name, words in context.params.items()} | given
        context = context.parent
    return given


def _param_at(reading: Reading, fragment: str) -> click.Parameter | None:
    """Return the parameter whose value stands at the cursor, None if none does."""
    if reading.option is not None or not (reading.options and fragment.startswith("-")):
        return reading.option or reading.argument
    name, equals, _ = fragment.partition("=")
    params = reading.command.get_params(reading.context) if equals else []
    return next((param for param in params if name in param.opts), None)


def _command(program: str) -> click.Command:
    """Return the command that a program is; `plxsh` may go by any name."""
    from plxsh.cli import cli

    if program == "plxsh":
        return cli
    from plxsh.classic import TOOLS

    return TOOLS.get(program, cli)


def _shown(found: Iterable[Candidate]) -> list[Candidate]:
    return [one for one in found if one.text.isprintable()]
