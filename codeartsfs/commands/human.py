"""Numbers as people read them."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"))


def size(count: float) -> str:
    """Return bytes as ``512 B``, ``1.2 GiB``."""
    unit = 0
    while count >= 1023.95 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} B"


def span(seconds: float) -> str:
    """Return a time as ``0.25 s``, ``42 s``, ``3 min``, ``5 h``, ``2 d``."""
    for length, unit in _SPANS:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def number(count: int) -> str:
    return f"{count:,}"
