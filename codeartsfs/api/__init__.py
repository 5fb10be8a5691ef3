"""The CodeArts Build HTTP API: credentials, pace, payloads, and the client that joins them.

The only package that speaks HTTP, and the only importer of httpx.
"""

import sys

# httpx loads a command line of its own where rich is installed: a fifth of a mount's start.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
