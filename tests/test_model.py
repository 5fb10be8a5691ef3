"""When a stage or a build is over: noticed late perhaps, never early."""

from dataclasses import replace

import pytest

from codeartsfs.model import BuildRecord, StageRun, is_final_word
from codeartsfs.names import RecordId, Stage

FINAL = ["success", "failure", "aborted", "schedule_failure", "finished", "error", "timeout"]
NOT_FINAL = ["", "running", "waiting", "queued", "init", "pending", "a word nobody knows", "succes"]


@pytest.mark.parametrize("word", [*FINAL, *map(str.upper, FINAL), *map(str.title, FINAL)])
def test_final_words_count_in_any_case(word: str) -> None:
    assert is_final_word(word)


@pytest.mark.parametrize("word", NOT_FINAL)
def test_unknown_words_are_not_final(word: str) -> None:
    assert not is_final_word(word)
    assert not StageRun(Stage("stage1"), status=word).final
    assert not BuildRecord(RecordId("a" * 36), status=word).final


@pytest.mark.parametrize("word", ["", "running", "a word nobody knows"])
def test_finish_time_means_over_whatever_the_word(word: str) -> None:
    assert StageRun(Stage("stage1"), status=word, finished_ns=1).final
    assert BuildRecord(RecordId("a" * 36), status=word, finished_ns=1).final


def test_builds_that_failed_succeeded_or_neither() -> None:
    words = {"FAILURE": (True, False), "timeout": (True, False), "SUCCESS": (False, True)}
    words |= {"ABORTED": (False, False), "RUNNING": (False, False), "": (False, False)}
    for word, (failed, succeeded) in words.items():
        build = BuildRecord(RecordId("a" * 36), status=word)
        assert (build.failed, build.succeeded) == (failed, succeeded), word


def test_a_build_is_as_old_as_its_end_and_new_while_it_runs() -> None:
    build = BuildRecord(RecordId("a" * 36), created_ns=1)
    assert build.modified_ns(9) == 1
    assert replace(build, started_ns=2).modified_ns(9) == 9
    assert replace(build, started_ns=2, finished_ns=3).modified_ns(9) == 3
    assert replace(build, started_ns=2, status="ABORTED").modified_ns(9) == 2
