"""The path grammar: what parses, and that nothing else does."""

from hypothesis import given
from hypothesis import strategies as st

from codeartsfs.names import (
    LogKey,
    LogLevel,
    RecordId,
    Stage,
    parse_build_number,
    parse_project_id,
    parse_record_id,
)

RECORD_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz-"
records = st.text(RECORD_ALPHABET, min_size=36, max_size=36).map(RecordId)
stages = st.one_of(
    st.sampled_from([Stage("initial"), Stage("final")]),
    st.integers(1, 9999).map(lambda number: Stage(f"stage{number}")),
)
keys = st.builds(LogKey, records, stages, st.sampled_from(LogLevel))
RECORD = RecordId("a" * 36)


@given(keys)
def test_file_names_parse_back_to_their_key(key: LogKey) -> None:
    assert LogKey.parse(key.record, key.file_name) == key
    assert str(key) == f"{key.record}/{key.file_name}"


@given(st.one_of(st.text(), st.from_regex(r"[a-z]+[0-9]*\.[a-z]+\.log\n?", fullmatch=True)))
def test_what_parses_is_the_name_of_what_it_parses_to(name: str) -> None:
    key = LogKey.parse(RECORD, name)
    assert key is None or key.file_name == name


@given(keys, st.integers(0, 40), st.characters())
def test_name_with_one_character_more_is_another_or_none(
    key: LogKey, position: int, extra: str
) -> None:
    name = key.file_name[:position] + extra + key.file_name[position:]
    assert LogKey.parse(key.record, name) != key


def test_near_misses_do_not_parse() -> None:
    names = [
        "",
        "stage1.info.log\n",
        "stage0.info.log",
        "stage01.info.log",
        "stage10000.info.log",
        "stage.info.log",
        "stage1.warn.log",
        "stage1.INFO.log",
        "Stage1.info.log",
        "stage1.info.log.swp",
        ".stage1.info.log",
        "initial1.info.log",
        "final.info",
        "stage１.info.log",  # a digit, but not ours
        "stage1/info.log",
        "stage1.info.log\0",
    ]
    assert [name for name in names if LogKey.parse(RECORD, name) is not None] == []


@given(records)
def test_record_ids_parse_to_themselves(record: RecordId) -> None:
    assert parse_record_id(record) == record


@given(st.text(max_size=40))
def test_only_36_characters_of_the_alphabet_are_a_record_id(text: str) -> None:
    expected = len(text) == 36 and set(text) <= set(RECORD_ALPHABET)
    assert (parse_record_id(text) is not None) == expected


def test_record_id_lookalikes_do_not_parse() -> None:
    for text in ["A" * 36, "a" * 35, "a" * 37, "a" * 36 + "\n", "a" * 35 + "/", "é" * 36]:
        assert parse_record_id(text) is None


@given(st.lists(stages))
def test_stages_sort_in_running_order(some: list[Stage]) -> None:
    ordered = sorted(some, key=lambda stage: stage.order)
    names = [stage.name for stage in ordered]
    numbers = [int(name.removeprefix("stage")) for name in names if name.startswith("stage")]
    assert numbers == sorted(numbers)
    numbered = [f"stage{number}" for number in numbers]
    assert names == ["initial"] * names.count("initial") + numbered + ["final"] * names.count(
        "final"
    )


@given(stages)
def test_stage_parses_to_itself(stage: Stage) -> None:
    assert Stage.parse(str(stage)) == stage
    assert stage.numbered == (stage.name not in ("initial", "final"))


@given(st.integers(1, 2**31 - 1))
def test_build_numbers_parse_to_themselves(number: int) -> None:
    assert parse_build_number(str(number)) == number


def test_build_number_lookalikes_do_not_parse() -> None:
    for text in ("", "0", "01", "-1", "+1", "1.0", " 1", "1\n", "٣", str(2**31), "9" * 30):
        assert parse_build_number(text) is None, text


def test_project_ids_are_32_characters_of_their_alphabet() -> None:
    assert parse_project_id("0a" * 16) == "0a" * 16
    for text in ("", "0" * 31, "0" * 33, "A" * 32, "-" * 32, "0" * 32 + "\n", "٣" * 32):
        assert parse_project_id(text) is None, text
