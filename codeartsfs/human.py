"""Numbers as people read them."""

_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"))


def size(size_bytes: float) -> str:
    """Write a number of bytes: ``17 B``, ``1.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 999.5:
            whole = unit == "B" or size_bytes >= 99.95
            return f"{size_bytes:.0f} {unit}" if whole else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def span(seconds: float) -> str:
    """Write a time span by its largest unit: ``0.25 s``, ``42 s``, ``3 min``, ``5 h``, ``2 d``."""
    for length_s, unit in _SPANS:
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {unit}"
    seconds = max(seconds, 0.0)
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def count(number: int, noun: str, plural: str = "") -> str:
    """Write a number of things: ``1 log``, ``1,234 logs``, ``3 retries``."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
