"""What holds for a whole command: the global options, and how it opens the store.

An option is taken from the command line, else from the environment, else from the
configuration file, else from the defaults here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import click

from core.errors import BadRequest, Interrupted, NotFound
from core.lock_messages import TOOL
from core.text import printable
from plxsh.signals import ended_by
from plxsh.streams import ask, tell

if TYPE_CHECKING:
    from core.blockstore import Blockstore, Mode
    from core.device import Cache
    from core.lock_connection import LockConnection
    from core.session import Session
    from plxsh.interpreter import Interpreter
    from plxsh.names import Names

Output = Literal["table", "json", "yaml", "plain"]
OUTPUTS: Final[tuple[Output, ...]] = get_args(Output)
CACHES: Final[tuple[Cache, ...]] = ("host", "none")

LOCK_MASTER_KEYS: Final = ("address", "key", "tls", "listen", "state", "log", "metrics")
DEFAULT_STORE: Final = "/blockstore.dat"
CONFIG_FILES: Final = ("~/.config/parallax/parallax.toml", "/etc/parallax/parallax.toml")


@dataclass
class Settings:
    """The global options of one command line, and what else its command may need.

    Args:
        store: path of the blockstore.
        cache: whose memory stands before it; None before the configuration is read.
        lock_master: where the lock master is, HOST:PORT or unix:PATH; empty for none but that
            of this host.
        lock_key: file with the key it wants, empty for none.
        lock_tls: folder with the certificates to show it, empty for none.
        output: form of the result; `form` is what was asked for, None for what fits.
        dry_run: change nothing.
        yes: do not ask.
        quiet: no notes, no progress.
        verbose: more of both.
        no_color: no colours; `color` says whether standard output takes any.
        program: what was started: plxsh, or one of the original tools.
        command: the words of the command that runs, for its errors.
        config: contents of the configuration file.
        paged: long output may go to a pager.
        vdi: UUID of the VDI that `use` selected, empty for none.
        shell: the shell or script that the command is part of.
        done: what the command has changed, in words: told if its result cannot be written.
        result: the same for programs.
    """

    store: str = ""
    cache: Cache | None = None
    lock_master: str = ""
    lock_key: str = ""
    lock_tls: str = ""
    form: Output | None = None
    output: Output = "plain"
    dry_run: bool = False
    yes: bool = False
    quiet: bool = False
    verbose: bool = False
    no_color: bool = False
    color: bool = False
    program: str = "plxsh"
    command: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    paged: bool = True
    vdi: str = ""
    shell: Interpreter | None = None
    done: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)

    def take(self, name: str, value: Any) -> None:
        """Set a field to what an option says; options are read before anything else."""
        if name == "output":
            self.form = self.output = output_form(value)
        else:
            setattr(self, name, value)
        if name == "no_color":
            self.color = False

    def configure(self, path: str | None) -> None:
        """Read the configuration and take from it what no option has set.

        Raises:
            NotFound, BadRequest: see `load_config`, `configured`, `cache_mode`,
                `refuse_unknown` and `output_form`.
        """
        self.config = load_config(path)
        self.store = self.store or configured(self.config, "blockstore", "data") or DEFAULT_STORE
        self.cache = self.cache or cache_mode(configured(self.config, "blockstore", "cache"))
        refuse_unknown(self.config, "lock_master", LOCK_MASTER_KEYS)
        for name, heard, key in (
            ("lock_master", os.environ.get("PARALLAX_LOCK_MASTER"), "address"),
            ("lock_key", os.environ.get("PARALLAX_LOCK_KEY"), "key"),
            ("lock_tls", os.environ.get("PARALLAX_LOCK_TLS"), "tls"),
        ):
            chosen = getattr(self, name) or heard or configured(self.config, "lock_master", key)
            setattr(self, name, chosen or "")
        form = configured(self.config, "shell", "output")
        if self.form is None and form is not None:
            self.form = output_form(form)

    def look(self) -> None:
        """Fit form and colours to what standard output is at the moment."""
        self.output = self.form or output_form(None)
        self.color = wants_color(self.no_color)

    def aliases(self) -> dict[str, str]:
        """Return the aliases of the configuration: name to the beginning of a line.

        Raises:
            BadRequest: what the configuration has there is no table of texts.
        """
        shell = self.config.get("shell", {})
        table = shell.get("aliases", {}) if isinstance(shell, dict) else {}
        if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
            raise BadRequest(
                "[shell.aliases] of the configuration is no table of texts",
                'write lines like: ll = "vdi list"',
            )
        return table

    def alias(self, word: str) -> list[str]:
        """Return the words that `word` stands for: itself if it is no alias."""
        meaning = self.aliases().get(word)
        if not meaning:
            return [word]
        from plxsh.language import statements

        found = statements(meaning)
        plain = len(found) == 1 and found[0].shell is found[0].pipe is found[0].output is None
        if not plain:
            raise BadRequest(
                f"the alias {word!r} is not the beginning of one command",
                "an alias has no ';', '|', '!' or '>'",
            )
        return found[0].arguments

    @cached_property
    def names(self) -> Names:
        """The names of VDIs and snapshots, for completion."""
        from plxsh.names import Names

        return Names(self.store, cache=self.caching)

    # -- the store ---------------------------------------------------------------------

    @property
    def caching(self) -> Cache:
        """Whose memory stands before the store."""
        return self.cache or "host"

    def blockstore(self) -> Blockstore:
        """Open the store for reading, without what only VDI contents need."""
        from core.blockstore import Blockstore

        store = Blockstore.open(self.store, cache=self.caching)
        self.warn(store.warnings)
        return store

    @property
    def purpose(self) -> str:
        """What this process does, for people: the words of its command line."""
        return f"{self.program} {self.command}".rstrip()

    def store_uuid(self) -> str:
        """Return the UUID of the store, in hexadecimal; raises as `Blockstore.open`."""
        from core.blockstore import Blockstore

        with closing(Blockstore.open(self.store, cache=self.caching)) as store:
            return store.sb.uuid.hex()

    def connect(self, purpose: str = "", role: str = TOOL) -> LockConnection:
        """Begin a session with the lock master that is configured.

        Args:
            purpose: what this process does, for people; by default the command line.
            role: what it is to other sessions.

        Raises:
            InUse, IoFailed: the lock master refuses, or cannot be reached.
            Others: as `Blockstore.open`.
        """
        from plxsh.locking import connect

        return connect(self, self.lock_master, purpose or self.purpose, role)

    def session(self, mode: Mode = "write") -> Session:
        """Open a session; with --dry-run nothing that it writes reaches the store.

        Who changes something takes its locks from the lock master that is configured, else
        from the tap that serves the store on this host, else has the store alone.

        Raises:
            NotFound, NotAStore, ReadOnly, InUse, Corrupt: as `Blockstore.open`.
            InUse, IoFailed: the lock master refuses, or cannot be reached.
        """
        if mode == "read":
            from core.session import Session

            session = Session.open(self.store, mode, self.caching)
        elif self.dry_run and mode == "write":
            from plxsh.dry_run import open_dry

            session = open_dry(self)
        else:
            from plxsh.locking import open_session

            session = open_session(self, mode)
        self.warn(session.store.warnings)
        return session

    def named(self, text: str) -> str:
        """Return a text with the VDI that `use` selected by its name instead of its UUID."""
        return text.replace(self.vdi, self.shell.used) if self.vdi and self.shell else text

    # -- the user ----------------------------------------------------------------------

    def warn(self, warnings: Iterable[str]) -> None:
        """Say on standard error what is wrong but does not stop the command."""
        for warning in warnings:
            tell(f"plxsh: warning: {printable(warning)}")

    def note(self, text: str) -> None:
        """Tell someone who watches, on standard error; scripts hear it with -v only."""
        if (self.output == "table" or self.verbose) and not self.quiet:
            tell(printable(text))

    def changed(self, done: str, result: Mapping[str, Any] | None = None) -> None:
        """Note what was changed, before the result is written to an output that may be full.

        Args:
            done: in words, such as "created VDI 3 'web'".
            result: what JSON shows of it.
        """
        self.done = done
        self.result = result or {}

    def confirm(self, loss: str, typed: str = "") -> None:
        """Ask before something that loses data; does nothing with -y or -n.

        Args:
            loss: what would happen, what would be lost, who depends on it; no full stop.
            typed: for what can never be undone, the word that has to be typed; else y.

        Raises:
            Interrupted: the answer is no, or another word.
            BadRequest: there is no terminal to ask on.
        """
        if self.yes or self.dry_run:
            return
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise BadRequest(f"{loss}, and there is no terminal to ask on", "-y says yes")
        loss, typed = printable(loss), printable(typed)
        how = f"This cannot be undone. Type {typed} to go on" if typed else "Go on? [y/N]"
        try:
            answer = ask(f"{loss}. {how}: ")
        except KeyboardInterrupt as interrupt:
            if ended_by(interrupt):
                raise
            answer = ""
        if not answer.endswith("\n"):
            tell()  # Ctrl-C and Ctrl-D leave the cursor behind the question
        answer = answer.removesuffix("\n")
        sure = answer == typed if typed else answer.strip().lower() in ("y", "yes")
        if not sure:
            raise Interrupted("not confirmed, nothing was changed")


pass_settings = click.make_pass_decorator(Settings)


def load_config(path: str | None) -> dict[str, Any]:
    """Return the contents of a configuration file.

    Args:
        path: the file to read; without it the first of `CONFIG_FILES` that exists.

    Raises:
        NotFound: `path` names no file.
        BadRequest: it is no valid TOML.
    """
    import tomllib

    candidates = [path] if path else [os.path.expanduser(name) for name in CONFIG_FILES]
    for name in candidates:
        try:
            with open(name, "rb") as file:
                return tomllib.load(file)
        except OSError as error:
            if path:
                raise NotFound(
                    f"cannot read the configuration {name}: {error.strerror}", "check the path"
                ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadRequest(f"{name}: {error}", "correct the file; it is TOML") from error
    return {}


def configured(config: Mapping[str, Any], section: str, key: str) -> str | None:
    """Return one text of a configuration, None when it does not have it.

    Raises:
        BadRequest: it is there but no text.
    """
    table = config.get(section, {})
    if not isinstance(table, dict):
        raise BadRequest(
            f"{section} of the configuration is {table!r}, not a section", f"write [{section}]"
        )
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        raise BadRequest(
            f"[{section}] {key} of the configuration is {value!r}, not a text", "put it in quotes"
        )
    return value


def refuse_unknown(config: Mapping[str, Any], section: str, known: Iterable[str]) -> None:
    """Refuse a misspelled key where doing without it is dangerous.

    Who does not ask the lock master of a store writes to it beside those who do.

    Raises:
        BadRequest: the section has a key that means nothing.
    """
    table = config.get(section, {})
    for key in table if isinstance(table, dict) else ():
        if key not in known:
            raise BadRequest(
                f"[{section}] of the configuration has an unknown key {key!r}",
                f"it may have {', '.join(known)}",
            )


def cache_mode(chosen: str | None) -> Cache:
    """Return whose memory stands before the store: what was asked for, else this host's.

    Raises:
        BadRequest: there is no such choice.
    """
    for mode in CACHES:
        if mode == (chosen or "host"):
            return mode
    raise BadRequest(f"there is no cache {chosen!r}", f"take {' or '.join(CACHES)}")


def output_form(chosen: str | None) -> Output:
    """Return the output form that was asked for, else what fits standard output.

    Raises:
        BadRequest: there is no such form.
    """
    if chosen is None:
        return "table" if sys.stdout.isatty() else "plain"
    if chosen not in OUTPUTS:
        raise BadRequest(f"there is no output form {chosen!r}", f"take {', '.join(OUTPUTS)}")
    return chosen


RUN_FOLDERS: Final = ("/run/parallax",)
"""Where taps that a system has started put their sockets."""


def run_folder() -> str:
    """Return the folder in which the tap of this user has its sockets."""
    chosen = os.environ.get("PARALLAX_RUN_DIR")
    if chosen:
        return chosen
    folder = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(folder or f"/run/user/{os.geteuid()}", "parallax")


STATE_FOLDER: Final = "/var/lib/parallax"
"""Where a lock master that a system has started keeps its state and its key."""


def state_folder() -> str:
    """Return the folder in which a lock master of this user keeps its state and its key."""
    chosen = os.environ.get("PARALLAX_STATE_DIR")
    if chosen:
        return chosen
    if os.geteuid() == 0:
        return STATE_FOLDER
    folder = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(folder, "parallax")


def state_folders() -> list[str]:
    """Return where the key of a lock master of this user, or of this host, may be."""
    return [*dict.fromkeys((state_folder(), STATE_FOLDER))]


def default_socket() -> str:
    """Return the Unix socket on which the tap of this user listens."""
    return os.path.join(run_folder(), "nbd.sock")


def hosted_socket(store: str) -> str:
    """Return the Unix socket of the lock master in the tap that serves a store.

    Args:
        store: the store's UUID, in hexadecimal.
    """
    return os.path.join(run_folder(), f"{store}.locks")


def wants_color(no_color: bool) -> bool:
    """Say whether standard output should have colours: a capable terminal that may."""
    return (
        not no_color
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
        and sys.stdout.isatty()
    )
