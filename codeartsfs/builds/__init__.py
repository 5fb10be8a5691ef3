"""Which builds and stages exist and whether they are over. Knows nothing of HTTP."""
