"""The bytes of logs: one download each, kept in memory and on disk. Knows nothing of HTTP."""
