"""constraints.txt pins what the tests run with, all of it."""

from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def needed(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """Return the names of all that a package needs here, with what that needs in turn."""
    if (name, extras) in seen:
        return set()
    seen.add((name, extras))
    names = {name}
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": e}) for e in extras | {""}):
            inner = canonicalize_name(requirement.name)
            names |= needed(inner, frozenset(requirement.extras), seen)
    return names


def test_every_package_that_is_needed_is_pinned_to_the_version_the_tests_run_with() -> None:
    wanted = needed("codeartsfs", frozenset({"dev"}), set()) - {"codeartsfs"}
    installed = {name: distribution(name).version for name in wanted}
    assert {name: pinned().get(name) for name in wanted} == installed
