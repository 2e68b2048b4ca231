"""The parts of the prompt by themselves: colours, suggestions, the menu, help on a word."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.auto_suggest import Suggestion
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from shell.conftest import Plx

from core.session import Session
from plxsh.cli import cli
from plxsh.context import Settings
from plxsh.explain import explain
from plxsh.interpreter import Interpreter
from plxsh.overview import Overview
from plxsh.prompt.colours import LineLexer
from plxsh.prompt.menu import Menu
from plxsh.prompt.reader import LineReader
from plxsh.prompt.suggest import SuggestHarmless, harmless
from plxsh.prompt.toolbar import toolbar

ALIASES = {"shell": {"aliases": {"ll": "vdi list", "rm": "vdi delete"}}}


@pytest.fixture
def shell(plx: Plx) -> Interpreter:
    with Session.open(str(plx.path)) as session:
        session.snapshot(session.create("My new VDI", 4096), "before upgrade")
        session.create("日本語", 4096)
    settings = Settings(store=str(plx.path), config=ALIASES)
    settings.names.vdis()  # as the toolbar does
    deadline = time.monotonic() + 30
    while settings.names.known() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return Interpreter(cli, settings)


# -- suggestions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "vdi list",
        "vdi create x --from base@clean",
        "snap create web; vdi list",
        "ll",
        "use base",
        "watch 5 vdi list",
    ],
)
def test_lines_that_may_be_suggested(shell: Interpreter, line: str) -> None:
    assert harmless(line, shell)


@pytest.mark.parametrize(
    "line",
    [
        "vdi delete web",
        "plxsh vdi delete web",
        "vdi list; vdi delete web",
        "rm web",
        "snap delete base@clean",
        "snap rollback base base@clean",
        "vdi fill base disk.img",
        "vdi resize web 4K --force",
        "store create blockstore.dat --force",
        "store check --repair",
        "vdi export base disk.img --force",
        "vdi create x -y",
        "-y vdi create x",
        "vdi list > /etc/passwd",
        "vdi list | xargs rm",
        "!rm -rf /",
        "source cleanup.plx",
        "watch vdi delete web",
        "help; vdi delete",
        "bogus",
        "vdi show 'a",
        "vdi",
        "",
    ],
)
def test_lines_that_may_not(shell: Interpreter, line: str) -> None:
    assert not harmless(line, shell)


def test_the_newest_harmless_line_is_suggested(shell: Interpreter) -> None:
    history = InMemoryHistory(["vdi list", "vdi show web", "vdi show base", "vdi delete web"])
    buffer = Buffer(history=history)
    list(history.load_history_strings())
    for line in ("vdi list", "vdi show web", "vdi show base", "vdi delete web"):
        history.append_string(line)

    def suggested(text: str) -> str | None:
        found = SuggestHarmless(shell).get_suggestion(buffer, Document(text))
        assert found is None or isinstance(found, Suggestion)
        return found and found.text

    assert suggested("vdi s") == "how base"
    assert suggested("vdi show w") == "eb"
    assert suggested("vdi d") is None
    assert suggested("vdi show base") is None
    assert suggested("") is None
    assert suggested(" ") is None


# -- colours ---------------------------------------------------------------------------


def styles(shell: Interpreter, text: str) -> dict[str, str]:
    """The style of every piece of a line, without its common beginning."""
    line = LineLexer(shell).lex_document(Document(text))(0)
    assert "".join(piece[1] for piece in line) == text
    return {piece[1]: piece[0].removeprefix("class:").removeprefix("word.") for piece in line}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("vdi lsit ", {"lsit"}),
        ("vdi lis", set()),
        ("vdi lsi", {"lsi"}),
        ("vid ", {"vid"}),
        ("v", set()),
        ("x", {"x"}),
        ("vdi show web ", set()),
        ("vdi show bogus ", {"bogus"}),
        ("vdi show we", set()),
        ("vdi show EB", set()),
        ("vdi show wx", {"wx"}),
        ("vdi show 1 ", set()),
        ("vdi show 77 ", {"77"}),
        ('vdi show "My new VDI" ', set()),
        ("snap delete base@clean ", set()),
        ("snap delete bogus@clean ", {"bogus@clean"}),
        ("snap delete 16 0 ", set()),
        ("vdi create x --size 2Q ", {"2Q"}),
        ("vdi create x --size 2", set()),
        ("vdi create x --bogus ", {"--bogus"}),
        ("vdi create x --si", set()),
        ("vdi list extra ", {"extra"}),
        ("vdi list -o jso", set()),
        ("vdi list -o xml ", {"xml"}),
        ("vdi list | grep bogus", set()),
        ("vdi list > bogus", set()),
        ("!bogus --bogus", set()),
        ("# bogus", set()),
        ("plxsh vdi list ", set()),
        ("rm web ", set()),
    ],
)
def test_the_wrong_word_is_marked(shell: Interpreter, text: str, wrong: set[str]) -> None:
    assert {word for word, style in styles(shell, text).items() if style == "wrong"} == wrong


def test_every_kind_of_word_has_its_style(shell: Interpreter) -> None:
    found = styles(shell, "vdi show web -o json | wc; !ls")
    assert found["vdi"] == "group"
    assert found["show"] == "command"
    assert found["-o"] == "option"
    assert found["web"] == found["json"] == "value"
    assert found["|"] == found["!"] == "operator"
    assert found[" wc"] == found["ls"] == "shell"
    assert styles(shell, "vdi show 'a b")["'a b"] == "open"


def test_lines_of_a_paste_are_coloured_each(shell: Interpreter) -> None:
    line = LineLexer(shell).lex_document(Document("vdi list\nvdi lsit\n"))
    assert ["".join(piece[1] for piece in line(n)) for n in range(2)] == ["vdi list", "vdi lsit"]
    assert ("class:word.wrong", "lsit") in line(1)


# -- the menu --------------------------------------------------------------------------


def offered(shell: Interpreter, text: str) -> dict[str, str]:
    """What the line becomes by each choice of the menu, and what stands beside the choice."""
    found = Menu(shell).get_completions(Document(text), CompleteEvent())
    return {
        text[: len(text) + choice.start_position] + choice.text: choice.display_meta_text
        for choice in found
    }


def test_names_are_quoted_as_they_must_be_typed(shell: Interpreter) -> None:
    assert 'vdi show "My new VDI"' in offered(shell, "vdi show new")
    assert 'vdi show "My new VDI"' in offered(shell, 'vdi show "My')
    assert "vdi show 'My new VDI'" in offered(shell, "vdi show 'My")
    assert 'vdi show "My new VDI"' in offered(shell, "vdi show My\\ n")
    assert "vdi show 日本語" in offered(shell, "vdi show 日")
    assert "vdi list; vdi show web" in offered(shell, "vdi list; vdi show w")
    assert 'vdi show "web"' in offered(shell, 'vdi show "w')


def test_what_goes_on_keeps_its_quote_open(shell: Interpreter) -> None:
    assert 'snap delete "My new VDI@' in offered(shell, "snap delete new")
    assert 'snap delete "My new VDI@before upgrade"' in offered(shell, 'snap delete "My new VDI@')
    assert "snap delete base@" in offered(shell, "snap delete ba")
    assert "snap delete base@clean" in offered(shell, "snap delete base@")


def test_files_behind_a_redirection(shell: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plxsh.paths._DEADLINE", 60.0)
    assert "vdi list > blockstore.dat" in offered(shell, "vdi list > bl")
    assert "vdi list >blockstore.dat" in offered(shell, "vdi list >bl")
    assert "vdi list >blockstore.dat" in offered(shell, "vdi list >")


def test_nothing_is_offered_in_remarks_and_unix_commands(shell: Interpreter) -> None:
    assert offered(shell, "!v") == {}
    assert offered(shell, "vdi list | v") == {}
    assert offered(shell, "# v") == {}


def test_a_defect_in_completion_offers_nothing(
    shell: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("plxsh.prompt.menu.complete", broken)
    assert offered(shell, "vdi ") == {}


# -- help on a word --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("|", "Usage: plxsh "),
        ("vdi| list", "Usage: plxsh vdi "),
        ("vdi li|st", "Usage: plxsh vdi list"),
        ("vdi create x --siz|e 2G", "--size SIZE: Size of the new VDI"),
        ("vdi create x --size |", "--size SIZE: Size of the new VDI"),
        ("vdi show we|b", "VDI: A VDI: its id, its name or its UUID"),
        ("vdi show |", "VDI: A VDI: its id, its name or its UUID"),
        ("vdi lsit|", "Usage: plxsh vdi "),
        ("vdi list -o |", "One of: table, json, yaml, plain."),
        ("vdi list; snap cre|ate", "Usage: plxsh snap create"),
        ("vdi show 'a b|", "VDI: A VDI"),
    ],
)
def test_help_on_the_word_at_the_cursor(shell: Interpreter, text: str, wanted: str) -> None:
    cursor = text.index("|")
    assert wanted in explain(shell, text.replace("|", ""), cursor)


# -- the toolbar -----------------------------------------------------------------------


def shown(shell: Interpreter, overview: Overview | None) -> str:
    return "".join(piece[1] for piece in toolbar(shell, overview))


def test_the_toolbar(shell: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    seen = Overview(3 << 20, 80 << 20, 4, "plxsh (process 7)", 2)
    line = shown(shell, seen)
    for part in (
        "blockstore.dat",
        "3 MiB of 80 MiB",
        "3 %",
        "2 open exports",
        "process 7",
        "4 VDIs",
    ):
        assert part in line
    shell.use(None)
    shell.used = "web"
    shell.settings.dry_run = True
    assert "VDI web" in shown(shell, seen)
    assert "dry run" in shown(shell, None)
    assert "no store there" in shown(shell, Overview(trouble="no store there"))


def test_the_toolbar_shows_where_the_lock_master_is(
    shell: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def style_and_text(overview: Overview) -> tuple[str, str]:
        found = [part[:2] for part in toolbar(shell, overview) if "lock master" in part[1]]
        assert len(found) == 1
        return found[0]

    calm, alarm = "class:toolbar", "class:toolbar.alarm"
    assert style_and_text(Overview()) == (calm, "lock master embedded, free")
    assert style_and_text(Overview(locks="in the tap")) == (calm, "lock master in the tap")
    far = Overview(locks="10.0.0.5:8440")
    assert style_and_text(far) == (calm, "lock master 10.0.0.5:8440")
    down = replace(far, locks_down="nobody listens there")
    assert style_and_text(down) == (alarm, "lock master 10.0.0.5:8440 is down")
    monkeypatch.setenv("COLUMNS", "50")  # what is wrong comes before what is as always
    assert style_and_text(down) == (alarm, "lock master 10.0.0.5:8440 is down")


@pytest.mark.parametrize("width", [10, 20, 40, 60, 80, 120])
def test_the_toolbar_fits(shell: Interpreter, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    line = shown(shell, Overview(3 << 20, 80 << 20, 4, "plxsh (process 7)", 2))
    assert len(line) <= width
    assert line.startswith(" blockstore.dat"[: width - 1])


# -- news in the toolbar -----------------------------------------------------------------


def test_news_that_come_when_the_prompt_has_just_ended(
    shell: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        reader = LineReader(shell)
    app = reader._session.app
    ended = asyncio.new_event_loop()
    ended.close()
    late: list[bool] = []

    def not_yet() -> bool:
        late.append(True)
        return False

    monkeypatch.setattr(ended, "is_closed", not_yet)
    monkeypatch.setattr(app, "loop", ended)
    monkeypatch.setattr(app, "_is_running", True)
    reader._overviews._look()
    assert late
