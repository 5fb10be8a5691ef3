"""Spelling names from outside: back and forth, and never out of the tree."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeartsfs.spelling import NAME_MAX_BYTES, shorten, spell, spell_all, spell_part, unspell

# Lone surrogates too: JSON can carry them.
NAMES = st.text(st.characters(exclude_categories=[]), max_size=40)
HOSTILE = [
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "../../etc/passwd",
    "a%2Fb",
    "a\nb",
    "\0",
    "\x1b[31m",
    "\u202eevil",
    "\u2028 \u2029",
    "\ud800",
    "web-app~" + "0" * 32,
    "~",
    "执行shell命令",
    "x" * 400,
    "构" * 400,
]


@given(NAMES | st.sampled_from(HOSTILE))
def test_a_spelled_name_can_be_read_back(name: str) -> None:
    assert unspell(spell(name)) == name
    assert unspell(spell_part(name)) == name


@given(NAMES | st.sampled_from(HOSTILE))
def test_a_spelled_name_stays_in_its_directory_and_harms_no_terminal(name: str) -> None:
    spelled = spell(name)
    spelled.encode()
    assert not spelled.startswith(".")
    assert "/" not in spelled
    categories = {unicodedata.category(character) for character in spelled}
    assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("name", ["web-app", "Maven build", "执行shell命令", "a.b", "a~b c", "-rf"])
def test_an_ordinary_name_is_itself(name: str) -> None:
    assert spell(name) == name


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        (".hidden", "%2Ehidden"),
        ("..", "%2E."),
        ("a/b", "a%2Fb"),
        ("50%", "50%25"),
        ("a\nb", "a%0Ab"),
        ("\u202ex", "%E2%80%AEx"),
        ("x~" + "0a" * 16, "x%7E" + "0a" * 16),
    ],
)
def test_what_a_name_cannot_have_is_escaped(name: str, spelled: str) -> None:
    assert spell(name) == spelled


def test_the_middle_of_a_name_may_begin_with_a_dot() -> None:
    assert spell_part(".NET build") == ".NET build"


IDS = st.text("0123456789abcdef", min_size=32, max_size=32)


@given(st.dictionaries(IDS, NAMES | st.sampled_from(HOSTILE), max_size=12), st.data())
def test_names_in_one_directory_are_all_different_and_fit(
    names: dict[str, str], data: st.DataObject
) -> None:
    if names:  # one that looks like another's mark
        identity = data.draw(st.sampled_from(sorted(names)))
        names["f" * 32] = names[identity] + "~" + identity
    files = spell_all(names)
    assert sorted(files.values()) == sorted(names)
    assert all(0 < len(file.encode()) <= NAME_MAX_BYTES for file in files)
    for file, identity in files.items():
        if not file.endswith("~" + identity):
            assert unspell(file) == names[identity]


def test_equal_names_are_all_marked() -> None:
    assert spell_all({"1": "twin", "2": "twin", "3": "other"}) == {
        "twin~1": "1",
        "twin~2": "2",
        "other": "3",
    }


@given(NAMES | st.sampled_from(HOSTILE), st.integers(0, 300))
def test_a_name_is_cut_between_characters_and_escapes(name: str, room_bytes: int) -> None:
    spelled = spell(name)
    cut = shorten(spelled, room_bytes)
    assert spelled.startswith(cut)
    assert len(cut.encode()) <= room_bytes
    assert name.startswith(unspell(cut))
