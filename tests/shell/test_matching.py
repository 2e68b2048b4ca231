"""Which names match a fragment, and in which order."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plxsh.matching import best, prefixed


def found(fragment: str, *names: str, limit: int | None = None) -> list[str]:
    return best(fragment, names, limit, str)


def test_ranks() -> None:
    names = ("w-e-b", "cobweb", "my-web", "webmail", "other", "web")
    assert found("web", *names) == ["web", "webmail", "my-web", "cobweb", "w-e-b"]


@pytest.mark.parametrize("name", ["my web", "my_web", "my.web", "my/web", "my@web"])
def test_a_word_begins_behind_anything_but_a_letter(name: str) -> None:
    assert found("web", "myweb", name) == [name, "myweb"]


def test_equals_stay_in_order() -> None:
    assert found("d", "disk-2", "disk-1", "Disk-3") == ["disk-2", "disk-1", "Disk-3"]


def test_an_empty_fragment_matches_all() -> None:
    assert found("", "b", "a") == ["b", "a"]
    assert found("", "b", "a", limit=1) == ["b"]


def test_the_limit_keeps_the_best() -> None:
    assert found("a", "ba", "ca", "a", limit=2) == ["a", "ba"]


@pytest.mark.parametrize(
    ("fragment", "name"),
    [
        ("BASE", "base"),
        ("mnv", "My new VDI"),
        ("STRASSE", "straße"),
        ("日語", "日本語"),
        ("écu", unicodedata.normalize("NFD", "Écurie")),
        (unicodedata.normalize("NFD", "écu"), "ÉCURIE"),
        ("a b", "a  b"),
    ],
)
def test_case_and_form_do_not_matter(fragment: str, name: str) -> None:
    assert found(fragment, name) == [name]


def test_letters_out_of_order_do_not_match() -> None:
    assert found("ab", "ba", "b", "a", "") == []


def test_names_that_are_slow_for_regular_expressions() -> None:
    assert found("a" * 60 + "b", *["a" * 255] * 1000) == []
    assert found("ab" * 60 + "c", *["ab" * 127] * 1000) == []


awkward = st.text(st.sampled_from(r"ab[]^-\&~|.*+?(){}$# é@"), max_size=8)


@given(awkward, st.lists(awkward, max_size=8))
def test_matches_are_those_with_the_letters_in_order(fragment: str, names: list[str]) -> None:
    def has_letters(name: str) -> bool:
        letters = iter(name)
        return all(letter in letters for letter in fragment)

    assert sorted(found(fragment, *names)) == sorted(filter(has_letters, names))


def test_prefixes_for_other_shells_are_exact() -> None:
    names = ["web", "Web", "cobweb", "webmail"]
    assert prefixed("we", names, None, str) == ["web", "webmail"]
    assert prefixed("we", names, 1, str) == ["web"]
