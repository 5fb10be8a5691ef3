"""Faults on request: how the emulator misbehaves, said in short words.

A word is ``[call:]name[=value]``: ``gzip``, ``throttle=3,retry-after=1``, ``task_log:error500=2``.
Without a call it holds wherever the switch makes sense; with one, for that call alone. A counted
switch strikes the next N calls, or all of them where no number is given.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from codeartsfs.api.wire import TimeForm

LOG_CALLS = frozenset({"task_log", "download_log"})
JSON_CALLS = frozenset(
    {
        "full_stages",
        "record",
        "records",
        "jobs",
        "history",
        "history_details",
        "record_info",
        "build_info_records",
        "running_status",
        "log_page",
        "real_time_log",
        "analysis",
    }
)
BUILD_CALLS = LOG_CALLS | JSON_CALLS
IAM_CALLS = frozenset({"iam_tokens", "iam_projects", "iam_temporary_keys"})
CALLS = BUILD_CALLS | IAM_CALLS

TIME_FORMS = {form.name.lower().replace("_", "-"): form for form in TimeForm}
ALWAYS = -1


class UnknownFault(ValueError):
    """A fault word that cannot be understood; the text says which and why."""


def _flag(text: str | None) -> bool:
    return {None: True, "on": True, "off": False}[text]


def _count(text: str | None) -> int:
    return ALWAYS if text is None else _at_least(int(text), 0)


def _amount(text: str | None) -> int:
    return _at_least(int(text or ""), 1)


def _seconds(text: str | None) -> float:
    seconds = float(text or "")
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError
    return seconds


def _at_least(value: int, low: int) -> int:
    if value < low:
        raise ValueError
    return value


def _one_of(*choices: str) -> Callable[[str | None], str]:
    return lambda text: {choice: choice for choice in choices}[text or ""]


def _switch(
    default: Any, parse: Callable[[str | None], Any], calls: frozenset[str], doc: str
) -> Any:
    return field(default=default, metadata={"parse": parse, "calls": calls, "doc": doc})


@dataclass(frozen=True, slots=True)
class Faults:
    """The switches as one call sees them. Counted switches are read through `FaultPlan.take`."""

    no_content_length: bool = _switch(False, _flag, LOG_CALLS, "chunked bodies of unknown length")
    gzip: bool = _switch(False, _flag, LOG_CALLS, "Content-Encoding: gzip where it is accepted")
    compress: str = _switch("gzip", _one_of("gzip", "zip"), LOG_CALLS, "what compress=true gives")
    range: bool = _switch(True, _flag, LOG_CALLS, "honour Range with 206 (default on)")
    empty: int = _switch(0, _count, LOG_CALLS, "N logs come empty, with 200")
    cut: int = _switch(0, _count, LOG_CALLS, "N bodies end half-way, connection closed")
    stall: int = _switch(0, _count, LOG_CALLS, "N bodies stop half-way, connection left open")
    slow: int | None = _switch(None, _amount, LOG_CALLS, "bytes per second of a body")
    initial_final_logs: bool = _switch(
        True, _flag, LOG_CALLS, "stages initial and final have logs (default on)"
    )

    delay: float = _switch(0.0, _seconds, BUILD_CALLS, "seconds before the headers")
    throttle: int = _switch(0, _count, BUILD_CALLS, "N times 429 APIGW.0308")
    retry_after: float | None = _switch(
        None, _seconds, BUILD_CALLS, "seconds in the Retry-After of a 429"
    )
    error500: int = _switch(0, _count, BUILD_CALLS, "N times 500 CB.00060101")
    busy: int = _switch(0, _count, BUILD_CALLS, "N times 500 CB.00060211, throttling in disguise")
    bad_gateway: int = _switch(0, _count, BUILD_CALLS, "N times 502 with HTML")
    fail_envelope: int = _switch(0, _count, BUILD_CALLS, "N times 200 with a fail envelope")
    forbid: int = _switch(0, _count, BUILD_CALLS, "N times 403 APIGW.0302")
    expire_token: bool = _switch(
        False, _flag, BUILD_CALLS, "tokens known by now are refused with 401 APIGW.0307"
    )
    clock_ahead: float = _switch(
        0.0, _seconds, BUILD_CALLS, "seconds the clock that judges signatures is ahead"
    )

    no_stages: bool = _switch(
        False, _flag, frozenset({"full_stages"}), "full-stages is not published: 404 APIGW.0101"
    )
    forbid_stages: bool = _switch(
        False, _flag, frozenset({"full_stages"}), "full-stages is forbidden: 403 APIGW.0302"
    )
    no_v4: bool = _switch(False, _flag, BUILD_CALLS, "paths under /v4 are not published")
    no_v1_log: bool = _switch(False, _flag, LOG_CALLS, "paths under /v1/log are not published")

    total: int | None = _switch(
        None, lambda text: int(text or ""), frozenset({"records"}), "total of the records list"
    )
    page_base: int = _switch(
        1, lambda text: int(_one_of("0", "1")(text)), frozenset({"records"}), "its first page"
    )
    order: str = _switch(
        "newest",
        _one_of("newest", "oldest"),
        frozenset({"records"}),
        "newest or oldest: what it begins with",
    )
    time_format: str = _switch(
        "iso-milliseconds", _one_of(*TIME_FORMS), JSON_CALLS, f"one of {', '.join(TIME_FORMS)}"
    )
    numbers: str | None = _switch(
        None,
        _one_of("int", "str"),
        frozenset({"records", "record", "record_info", "full_stages", "jobs"}),
        "int or str: type of what is counted in JSON; by default as the vendor has it",
    )
    offsets: str = _switch(
        "int", _one_of("int", "str"), frozenset({"log_page"}), "type of log offsets in JSON"
    )
    jobs: str = _switch(
        "flat", _one_of("flat", "enveloped"), frozenset({"jobs"}), "shape of the jobs list"
    )

    @property
    def time_form(self) -> TimeForm:
        return TIME_FORMS[self.time_format]


_SWITCHES = {f.name.replace("_", "-"): f for f in fields(Faults)}
_ALIASES = {"chunked": "no-content-length"}
# Either is a number of calls struck, which only a plan, having a memory, can tell.
_COUNTED = frozenset(f.name for f in fields(Faults) if f.metadata["parse"] is _count)


def describe() -> list[tuple[str, str]]:
    """Return each switch as (how to write it, what it does)."""
    rows = []
    for name, switch in _SWITCHES.items():
        parse = switch.metadata["parse"]
        value = {_flag: "", _count: "[=N]", _seconds: "=S"}.get(parse, "=VALUE")
        rows.append((name + value, switch.metadata["doc"]))
    return rows


class FaultPlan:
    """Fault words, understood, with the memory of how often each has struck.

    Raises:
        UnknownFault: a word names no call, no switch, or has a value that makes no sense.
    """

    def __init__(self, words: Iterable[str] = ()) -> None:
        self.words = tuple(words)
        settings: dict[str | None, dict[str, Any]] = {}
        for word in self.words:
            call, values = _parse(word)
            settings.setdefault(call, {}).update(values)
        everywhere = settings.get(None, {})
        self._faults = {
            call: Faults(**_meant_for(call, everywhere) | settings.get(call, {})) for call in CALLS
        }
        self._left = {
            (call, name): count
            for call, values in settings.items()
            for name, count in values.items()
            if name in _COUNTED
        }

    def of(self, call: str) -> Faults:
        """Return the switches as a kind of call sees them."""
        return self._faults[call]

    def take(self, call: str, name: str) -> bool:
        """Tell whether a counted switch strikes this call, and count the strike."""
        if not getattr(self._faults[call], name):
            return False
        for scope in (call, None):
            left = self._left.get((scope, name), 0)
            if left:
                self._left[scope, name] = left - 1 if left > 0 else ALWAYS
                return True
        return False


def _parse(word: str) -> tuple[str | None, dict[str, Any]]:
    call: str | None
    call, colon, rest = word.partition(":")
    if not colon:
        call, rest = None, word
    elif call not in CALLS:
        raise UnknownFault(f"{word!r}: no call {call!r}; there are {', '.join(sorted(CALLS))}")
    values = {}
    for part in rest.split(","):
        name, equals, text = part.partition("=")
        switch = _SWITCHES.get(_ALIASES.get(name, name))
        if switch is None:
            raise UnknownFault(f"{word!r}: no switch {name!r}")
        try:
            values[switch.name] = switch.metadata["parse"](text if equals else None)
        except (ValueError, KeyError):
            raise UnknownFault(f"{word!r}: {name} cannot be {text!r}") from None
    return call, values


def _meant_for(call: str, values: Mapping[str, Any]) -> dict[str, Any]:
    calls = {f.name: f.metadata["calls"] for f in fields(Faults)}
    return {name: value for name, value in values.items() if call in calls[name]}
