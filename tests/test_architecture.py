"""Which part may know which: the import graph of the package, as it is allowed to be."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "codeartsfs"

ALLOWED: dict[str, set[str]] = {
    "names": set(),
    "errors": {"names"},
    "model": {"names"},
    "config": {"names"},
    "spelling": set(),
    "priority": set(),
    "timing": set(),
    "asking": set(),
    "api": {"names", "errors", "model", "priority", "timing"},
    "builds": {"names", "errors", "model", "spelling"},
    "logs": {"names", "errors", "model", "priority", "timing"},
    "fs": {"names", "errors", "model", "spelling", "builds", "logs", "timing", "asking", "human"},
    "emulator": {"names", "model", "api.wire"},
    "notify": set(),
    "background": set(),
    "human": set(),
}
# The errno of an answer is chosen in fs/reply.py alone. The others read that of an OSError.
ONLY_IN = {
    "httpx": ("api/",),
    "pyfuse3": ("fs/",),
    "errno": (
        *("fs/reply.py", "fs/mountpoint.py", "logs/disk.py"),
        *("commands/log_level.py", "commands/mount.py", "commands/status.py"),
        *("diagnostics.py", "doctor/mounts.py"),
    ),
    "starlette": ("emulator/",),
    "hypercorn": ("emulator/",),
}
# What puts the parts together.
ON_TOP = {
    "__init__.py",
    "__main__.py",
    "batch.py",
    "cli.py",
    "daemon.py",
    "diagnostics.py",
    "inspection.py",
    "selection.py",
    "session.py",
    "status.py",
}
MODULES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(tree: ast.Module) -> set[str]:
    """Return the full names of all modules imported anywhere, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES)
def test_parts_import_only_what_they_may_know(path: str) -> None:
    part = path.removesuffix(".py").partition("/")[0]
    if part not in ALLOWED:
        assert part in {"commands", "doctor"} or path in ON_TOP
        return
    if path == "emulator/demo.py":
        return  # puts the emulator and a mount together, as daemon.py does with the rest
    ours = {
        name.removeprefix("codeartsfs.")
        for name in imported(MODULES[path])
        if name.startswith("codeartsfs.")
    } - {"__version__"}
    may = ALLOWED[part] | {part}
    strangers = {
        name
        for name in ours
        if not any(name == known or name.startswith(known + ".") for known in may)
    }
    assert strangers == set()


@pytest.mark.parametrize("path", MODULES)
def test_outside_packages_stay_where_they_belong(path: str) -> None:
    tops = {name.partition(".")[0] for name in imported(MODULES[path])}
    for package, places in ONLY_IN.items():
        assert package not in tops or path.startswith(places), package
