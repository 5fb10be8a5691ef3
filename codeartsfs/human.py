"""Numbers as people read them."""


def size(size_bytes: float) -> str:
    """Write a number of bytes: ``17 B``, ``1.2 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 999.5:
            whole = unit == "B" or size_bytes >= 99.95
            return f"{size_bytes:.0f} {unit}" if whole else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def age(seconds: float) -> str:
    """Write a time span by its largest unit: ``3 min``, ``2 days``."""
    for unit, length_s in (("day", 86_400), ("h", 3600), ("min", 60)):
        number = int(seconds // length_s)
        if number:
            return f"{number} {unit}{'s' if unit == 'day' and number > 1 else ''}"
    return f"{max(seconds, 0):.0f} s"


def count(number: int, noun: str) -> str:
    """Write a number of things: ``1 log``, ``1,234 logs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
