"""Words of the command line: sizes, addresses, references of one or two words."""

from __future__ import annotations

import pytest

from plxsh.params import join_words, names_snapshot, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("64K", 65536),
        ("64k", 65536),
        ("2G", 2 << 30),
        ("2GiB", 2 << 30),
        ("1T", 1 << 40),
        ("1P", 1 << 50),
        ("2GB", None),
        ("1.5G", None),
        ("-1", None),
        ("4 K", None),
        ("²", None),
        ("iB", None),
        ("4iB", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("words", "count", "references"),
    [
        ("16 0", 1, ["16.0"]),
        ("16.0", 1, ["16.0"]),
        ("base@clean", 1, ["base@clean"]),
        ("16 x", 1, None),
        ("16 0 1", 1, None),
        ("16 0 17 1", 2, ["16.0", "17.1"]),
        ("16 0 base", 2, ["16.0", "base"]),
        ("base 16 0", 2, ["base", "16.0"]),
        ("1 2 3", 2, None),
        ("a b", 2, ["a", "b"]),
        ("a", 2, None),
        (" ".join(["1"] * 60), 2, None),
    ],
)
def test_words_to_references(words: str, count: int, references: list[str] | None) -> None:
    assert join_words(tuple(words.split()), count) == (references and tuple(references))


def test_snapshots_and_vdis_are_told_apart() -> None:
    assert all(map(names_snapshot, ["16.0", "base@clean", "0@16.0"]))
    assert not any(map(names_snapshot, ["16", "base", "v1.2-rc", "my.disk"]))
