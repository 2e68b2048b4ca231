"""Runs lines of the shell's language: a script, the lines of -c, or what is typed.

One command is one call of the click command `cli`, with settings of its own that start
out as those of the shell. Redirections and pipes work on file descriptors, so they hold
for whatever a command writes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import click

from core.device import io_error
from core.errors import BadRequest, ParallaxError
from core.format import VdiRecord
from core.text import printable
from plxsh.context import Settings
from plxsh.guard import BROKEN_PIPE, guarded, tell
from plxsh.language import Statement, statements

_SHELL: Final = "/bin/sh"
_DEEPEST: Final = 20


class Interpreter:
    """A shell without a prompt.

    Args:
        cli: the command that every statement is a call of.
        settings: those of the shell; each command begins with a copy.

    Attributes:
        leaving: `exit` was given.
        used: name, as it is shown, of the VDI that `use` selected, empty for none.
        gone: it was there and is no longer, as far as `follow` knows.
    """

    def __init__(self, cli: click.Command, settings: Settings) -> None:
        """Become the shell of these settings."""
        self.cli = cli
        self.settings = settings
        self.leaving = False
        self.used = ""
        self.gone = False
        self._there = False  # a VDI that was just made is not known yet
        self._known = -1
        self._depth = 0
        settings.shell = self

    def run(self, text: str, name: str = "") -> int:
        """Run every statement of a text until one fails; return the exit status.

        Args:
            text: one line or more.
            name: where it comes from, for errors; empty for what was typed.
        """
        name = "standard input" if name == "-" else name
        try:
            found = statements(text)
        except BadRequest as error:
            return tell(self.settings, _program(name, 0), error)
        for statement in found:
            status = self._run(statement, _program(name, statement.line))
            if status or self.leaving:
                return status
        return 0

    def use(self, record: VdiRecord | None) -> None:
        """Make a VDI the one that commands mean when they are given none; None for no VDI."""
        self.settings.vdi = str(uuid.UUID(bytes=record.uuid)) if record else ""
        self.used = printable(record.name) if record else ""
        self.gone = self._there = False
        self._known = -1

    def follow(self) -> None:
        """Take notice when the VDI of `use` got another name or was deleted; never waits."""
        known = self.settings.names.known()
        if not self.used or known is None or known.version == self._known:
            return
        record = known.find(self.settings.vdi)
        self._known = known.version
        self.gone = record is None and self._there
        self._there = record is not None or self._there
        self.used = printable(record.name) if record else self.used

    def source(self, path: str) -> int:
        """Run the commands of a file as part of this shell; raises as `read_script`."""
        if self._depth == _DEEPEST:
            raise BadRequest(f"{path}: {_DEEPEST} scripts call one another already", "end the loop")
        text = read_script(path)
        self._depth += 1
        try:
            return self.run(text, path)
        finally:
            self._depth -= 1

    def call(self, words: list[str], settings: Settings, program: str) -> int:
        """Run one command; whatever goes wrong is told, and becomes the exit status."""

        def command() -> Any:
            return self.cli.main(words, "plxsh", standalone_mode=False, obj=settings)

        return guarded(command, settings, program)

    def _run(self, statement: Statement, program: str) -> int:
        settings = replace(self.settings, command="", done="", result={})
        try:
            if statement.shell is not None:
                return shell_out(statement.shell)
            if statement.output is not None:
                self._refuse_store(statement.output)
            with redirected(statement) as pipe:
                words = statement.arguments
                words = words[1:] if words[0] == "plxsh" else words
                status = self.call(words, settings, program)
        except ParallaxError as error:
            return tell(settings, program, error)
        if pipe is not None and status in (0, BROKEN_PIPE):  # who reads may leave early
            return pipe.returncode
        return status

    def _refuse_store(self, path: str) -> None:
        """Raise BadRequest if output would go over the store: one slip and all disks are gone."""
        from core.source import refuse_store

        with suppress(OSError):  # a file that is not there yet
            refuse_store(self.settings.store, path, os.stat(path))


def shell_of(ctx: click.Context, settings: Settings) -> Interpreter:
    """Return the shell that a command is part of, a new one if it stands by itself."""
    return settings.shell or Interpreter(ctx.find_root().command, settings)


def _program(name: str, line: int) -> str:
    """Return what an error begins with."""
    return ": ".join(
        ["plxsh", *([name] if name else []), *([f"line {line}"] if name and line else [])]
    )


def read_script(path: str) -> str:
    """Return the text of a script, `-` for standard input.

    Raises:
        NotFound, ReadOnly, IoFailed: it cannot be read.
        BadRequest: it is no text.
    """
    name = "standard input" if path == "-" else path
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            raw = file.read()
    except OSError as error:
        raise io_error(error, f"cannot read {name}") from error
    raw = raw.removeprefix(BOM_UTF8).replace(b"\r\n", b"\n")  # as other systems write texts
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise BadRequest(f"{name} is no text (line {number})", "give it commands in UTF-8")
    return raw.decode()


@contextmanager
def waiting_for_child() -> Iterator[None]:
    """Leave Ctrl-C to the child that has the terminal, for the length of a `with` block."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # unlike SIG_IGN not inherited
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def shell_out(line: str) -> int:
    """Run a line in the Unix shell and return its exit status."""
    sys.stdout.flush()
    with waiting_for_child():
        status = subprocess.run([_SHELL, "-c", line], check=False).returncode
    return 128 - status if status < 0 else status


@contextmanager
def redirected(statement: Statement) -> Iterator[subprocess.Popen[bytes] | None]:
    """Connect standard input and output as a statement says, for a `with` block.

    Yields:
        The process behind `|`, which has ended when the block is left.

    Raises:
        NotFound, ReadOnly, NoSpace, IoFailed: a file cannot be opened.
    """
    with ExitStack() as stack:
        if statement.input is not None:
            stack.enter_context(_connected(0, _opened(statement.input, os.O_RDONLY)))
        if statement.output is not None:
            how = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if statement.append else os.O_TRUNC)
            stack.enter_context(_connected(1, _opened(statement.output, how)))
        pipe = None
        if statement.pipe is not None:
            reading, writing = os.pipe()
            pipe = subprocess.Popen([_SHELL, "-c", statement.pipe], stdin=reading)
            os.close(reading)
            stack.callback(_wait, pipe)
            stack.enter_context(_connected(1, writing))
        yield pipe


def _wait(process: subprocess.Popen[bytes]) -> None:
    with waiting_for_child():
        process.wait()


def _opened(path: str, how: int) -> int:
    try:
        return os.open(path, how, 0o666)
    except OSError as error:
        raise io_error(error, f"cannot open {path}") from error


@contextmanager
def _connected(target: int, source: int) -> Iterator[None]:
    """Make descriptor `target` the file `source`, which is closed; then as it was before."""
    sys.stdout.flush()
    before = os.dup(target)
    os.dup2(source, target)
    os.close(source)
    try:
        yield
    finally:
        with suppress(OSError):  # the command has heard of it
            sys.stdout.flush()
        os.dup2(before, target)
        os.close(before)
