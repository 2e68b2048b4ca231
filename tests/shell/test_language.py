"""The shell's language: what people know of sh means the same here, the rest is refused."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress

import pytest
from hypothesis import given
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


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_a_quoted_word_is_read_back_here_and_by_sh(many: list[str]) -> None:
    for quote in ("", "'", '"'):
        line = " ".join(["x", *(quoted(word, quote=quote) for word in many)])
        assert words(line) == [["x", *many]]
        script = f"printf '%s\\0' {line}"
        done = subprocess.run(["/bin/sh", "-c", script.encode()], capture_output=True, check=True)
        assert done.stdout.decode().split("\0") == ["x", *many, ""]


@given(st.text(min_size=1))
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
