"""The shell's language: what people know of sh means the same here, the rest is refused."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.errors import BadRequest
from plxsh.language import goes_on, quoted, split, statements, tokens


def words(text: str) -> list[list[str]]:
    return [statement.arguments for statement in statements(text)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("vdi list", [["vdi", "list"]]),
        ("  vdi   list  ", [["vdi", "list"]]),
        ("vdi list; vdi show 0", [["vdi", "list"], ["vdi", "show", "0"]]),
        ("vdi list\nvdi show 0\n", [["vdi", "list"], ["vdi", "show", "0"]]),
        ("vdi list && vdi show 0", [["vdi", "list"], ["vdi", "show", "0"]]),
        (";;\n;", []),
        ("", []),
        ("# only a remark", []),
        ("vdi list # a remark; not a command", [["vdi", "list"]]),
        ("vdi show a#b", [["vdi", "show", "a#b"]]),
        ('vdi show "My new VDI"', [["vdi", "show", "My new VDI"]]),
        ("vdi show 'My new VDI'", [["vdi", "show", "My new VDI"]]),
        (r"vdi show My\ new\ VDI", [["vdi", "show", "My new VDI"]]),
        (r'vdi show "a \"b\" \\ \x"', [["vdi", "show", r'a "b" \ \x']]),
        (r"vdi show 'a\'", [["vdi", "show", "a\\"]]),
        ("vdi show a'b'\"c\"", [["vdi", "show", "abc"]]),
        ("vdi show ''", [["vdi", "show", ""]]),
        ("vdi \\\n list", [["vdi", "list"]]),
        ("vdi show ';|>'", [["vdi", "show", ";|>"]]),
        ("vdi show 日本語@über", [["vdi", "show", "日本語@über"]]),
        ("vdi show wow!", [["vdi", "show", "wow!"]]),
        ("vdi show $HOME *", [["vdi", "show", "$HOME", "*"]]),
    ],
)
def test_words(text: str, wanted: list[list[str]]) -> None:
    assert words(text) == wanted


def test_a_leading_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert words("vdi fill a ~/x '~/x' a~") == [["vdi", "fill", "a", "/home/me/x", "~/x", "a~"]]


def test_redirections_and_pipes() -> None:
    [one] = statements("vdi list -o json > 'a b'")
    assert (one.arguments, one.output, one.append) == (["vdi", "list", "-o", "json"], "a b", False)
    [one] = statements("vdi list>>log")
    assert (one.arguments, one.output, one.append) == (["vdi", "list"], "log", True)
    [one] = statements("vdi fill base - <disk.img")
    assert (one.arguments, one.input) == (["vdi", "fill", "base", "-"], "disk.img")
    one, two = statements("vdi list | grep ';' | wc -l; vdi show 0")
    assert (one.arguments, one.pipe) == (["vdi", "list"], "grep ';' | wc -l")
    assert two.arguments == ["vdi", "show", "0"]
    one, two = statements("!for i in 1 2; do echo $i | cat; done\nvdi list")
    assert (one.shell, one.arguments) == ("for i in 1 2; do echo $i | cat; done", [])
    assert (two.arguments, two.line) == (["vdi", "list"], 2)
    _, two = statements("vdi list; !ls")
    assert two.shell == "ls"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("vdi show 'a", 'quote in "\'a" is not closed'),
        ('vdi show a"b c', "is not closed"),
        ("vdi list >", "no file stands behind '>'"),
        ("vdi list > ; vdi list", "no file stands behind '>'"),
        ("vdi list > | cat", "no file stands behind '>'"),
        ("vdi list |", "no command stands behind '|'"),
        ("vdi list | ; vdi list", "no command stands behind '|'"),
        ("!", "no command stands behind '!'"),
        ("| cat", "no command stands before '|'"),
        ("> file", "no command stands before '>'"),
        ("tap serve &", "'&' means nothing here"),
        ("vdi list || vdi list", "'||' means nothing here"),
        ("vdi list 2>/dev/null", "'2>' means nothing here"),
        ("vdi list >f | cat", "not to both"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(why)) as caught:
        statements(text)
    assert caught.value.hint


def test_lines_are_counted() -> None:
    text = "vdi list\n\n# remark\nvdi show 'a\nb'; vdi show 1\nvdi list"
    assert [statement.line for statement in statements(text)] == [1, 4, 5, 6]


@given(st.text())
def test_any_text_has_tokens_in_order_and_refuses_with_reason(text: str) -> None:
    at = 0
    for token in tokens(text):
        assert at <= token.start < token.end or token.kind == "shell"
        assert token.end <= len(text)
        at = token.end
    kept = [token for words, others in split(tokens(text)) for token in (*words, *others)]
    assert sorted(kept, key=lambda token: token.start) == tokens(text)
    with suppress(BadRequest):
        statements(text)


SPECIAL = [
    "*", "a*", "?", "[a]", "~", "~root", "~+", "a~", "=ls", "=", "a=b", "{a,b}", "{}", "a{1..3}",
    "^a", "^", "#", "a#b", "!", "!!", "a!b", "!$", "$", "$HOME", "`ls`", "$(ls)", "(ls)", ")",
    "%", "%self", "%1", "&", "|", ";", "<", ">", "<(ls)", "'", "''", "it's", '"', '"a"', "\\",
    "\\\\", "\\'", "'\\", "a\\n", "\\x41", "\n", "a\nb", "\t", " ", "a b", "-", "--", "-n", "@(a)",
    "+(a)", "a:b", "**", "*(.)", "a^b", "a,b", ":", "..", "日本 語", "a\\!b", "a'!b",
    "\\$", "it's $5!",
]  # fmt: skip
"""What a shell expands, and what is special in its quotes."""
PRINTF = "printf '%s\\0' "
SHELLS = {
    "sh": ["sh", "-c"],
    "bash": ["bash", "--norc", "-O", "extglob", "-c"],
    "zsh": ["zsh", "-f", "-o", "extendedglob", "-c"],
    "fish": ["fish", "--no-config", "-c"],
}


def read_by(shell: str, line: str) -> list[str]:
    """The words that a shell makes of a line."""
    command = [*SHELLS[shell], (PRINTF + line).encode()]
    done = subprocess.run(command, capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_a_quoted_word_is_read_back_by_every_shell(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "ab", "[", "~", "x.y"):
        Path(name).touch()  # what patterns would find
    for quote in ("", "'", '"'):
        special = [word for word in SPECIAL if quote != '"' or shell != "fish" or "`" not in word]
        line = " ".join(["x", *(quoted(word, quote=quote) for word in special)])
        assert read_by(shell, line) == ["x", *special]
        begun = [quoted(word, False, quote or "'") for word in special]
        assert read_by(shell, " ".join(text + text[0] for text in begun)) == special


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_no_prompt_looks_for_a_quoted_word_in_its_history(shell: str, tmp_path: Path) -> None:
    words = [word for word in SPECIAL if "\n" not in word and "\t" not in word]
    lines = [PRINTF + " ".join(quoted(word) for word in words), "exit"]
    how = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i", "+o", "zle"]}
    env = {**os.environ, "HISTFILE": str(tmp_path / "history")}
    done = subprocess.run(
        how[shell], input="\n".join([": ls", *lines, ""]).encode(), capture_output=True, env=env
    )
    assert "\0".join([*words, ""]).encode() in done.stdout


ANY_WORDS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))


@given(ANY_WORDS)
@example(SPECIAL)
def test_a_quoted_word_is_read_back_here_and_by_sh(many: list[str]) -> None:
    for quote in ("", "'", '"'):
        line = " ".join(["x", *(quoted(word, quote=quote) for word in many)])
        assert words(line) == [["x", *many]]
        assert read_by("sh", line) == ["x", *many]


@pytest.mark.slow
@given(ANY_WORDS)
@example(SPECIAL)
@settings(max_examples=40)
def test_any_quoted_word_is_read_back_by_every_shell(many: list[str]) -> None:
    line = " ".join(["x", *map(quoted, many)])
    for shell in ("bash", "zsh"):
        assert read_by(shell, line) == ["x", *many]
    # fish takes some code points for private use for its own.
    kept = ["x", *(word for word in many if not any("\ue000" <= c <= "\uf8ff" for c in word))]
    assert read_by("fish", " ".join(map(quoted, kept))) == kept


@given(st.text(min_size=1))
@example("'")
@example("\\")
@example("a'")
@example("*\\")
def test_an_open_quote_goes_on(text: str) -> None:
    begun = quoted(text, closed=False)
    [token] = tokens(begun + "z" * (begun[:1] not in "'\""))
    assert token.text.startswith(text.rstrip("\\") if token.closed else text)


def test_words_and_the_rest_are_told_apart() -> None:
    found = list(split(tokens("vdi list > out; tree -o x | cat")))
    assert [[word.text for word in part] for part, _ in found] == [
        ["vdi", "list"],
        ["tree", "-o", "x"],
    ]
    assert [[other.text for other in others] for _, others in found] == [
        [">", "out", ";"],
        ["|", "cat"],
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [("", False), ("a", False), ("a \\", True), ("\\", True), ("a\\\\", False), ("\\ ", False)],
)
def test_a_line_that_goes_on(line: str, expected: bool) -> None:
    assert goes_on(line) is expected
