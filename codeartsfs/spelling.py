"""How names from outside become file names: readable, reversible, never leaving the tree.

A character is kept as it is, unless a file name or a terminal cannot have it: ``/``, ``%``, a
leading dot, control and format characters, line separators and lone surrogates are written
as ``%XX`` for each byte of their UTF-8. What cannot be told from something else that way (a
name that is empty, too long or not the only one) ends in ``~`` and the id of what it names.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from urllib.parse import unquote

NAME_MAX_BYTES = 255  # of Linux, for one name in a directory

_UNPRINTED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# A name that looks as if it ended in an id must not be taken for one that does.
_LOOKS_MARKED = re.compile(r"~(?=[0-9A-Za-z_-]+\Z)")
_PIECE = re.compile(r"(?:%[0-9A-F]{2})+|.", re.DOTALL)


def spell(name: str) -> str:
    """Return a name with everything escaped that a file name cannot have.

    ``unspell`` gives the name back. The result may still be empty or too long.
    """
    spelled = spell_part(name)
    if spelled.startswith("."):
        spelled = _escape(".") + spelled[1:]
    return _LOOKS_MARKED.sub(_escape("~"), spelled)


def spell_part(text: str) -> str:
    """``spell`` for what is only the middle of a file name."""
    if text.isascii() and text.isprintable() and "/" not in text and "%" not in text:
        return text
    return "".join(map(_spell_character, text))


def spell_path(path: str | os.PathLike[str]) -> str:
    """Return a path as it can be shown on a terminal."""
    return "/".join(map(spell_part, os.fspath(path).split("/")))


def unspell(text: str) -> str:
    """Return the name that ``spell`` wrote so."""
    return unquote(text, errors="surrogatepass")


def shorten(spelled: str, room_bytes: int) -> str:
    """Cut a spelled name to a number of bytes, between characters and never inside an escape."""
    kept, used_bytes = [], 0
    for piece in _PIECE.findall(spelled):
        used_bytes += len(piece.encode())
        if used_bytes > room_bytes:
            break
        kept.append(piece)
    return "".join(kept)


def spell_all(names: Mapping[str, str]) -> dict[str, str]:
    """Spell names that live in one directory, all differently.

    Args:
        names: id -> name; ids consist of letters, digits, ``-`` and ``_``.

    Returns:
        file name -> id.
    """
    spelled = {name: spell(name) for name in names.values()}
    times = Counter(names.values())
    files = {}
    for identity, name in names.items():
        file = spelled[name]
        if not file or times[name] > 1 or len(file.encode()) > NAME_MAX_BYTES:
            mark = "~" + identity
            file = shorten(file, NAME_MAX_BYTES - len(mark)) + mark
        files[file] = identity
    return files


def _spell_character(character: str) -> str:
    if character in "/%" or unicodedata.category(character) in _UNPRINTED:
        return _escape(character)
    return character


def _escape(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
