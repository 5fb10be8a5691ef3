"""Numbers as people read them."""

import pytest

from codeartsfs import human


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (158 << 10, "158 KiB"),
        (2 << 30, "2.0 GiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_sizes_have_at_most_three_digits_before_their_unit(size_bytes: int, text: str) -> None:
    assert human.size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.25, "0.25 s"), (59.9, "60 s"), (61, "1 min"), (7300, "2 h"), (90_000, "1 d")],
)
def test_spans_are_told_by_their_largest_unit(seconds: float, text: str) -> None:
    assert human.span(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 retries"), (1, "1 retry"), (1234, "1,234 retries")]
)
def test_one_thing_is_no_plural(number: int, text: str) -> None:
    assert human.count(number, "retry", "retries") == text
