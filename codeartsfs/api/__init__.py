"""The CodeArts Build HTTP API: credentials, pace, payloads, and the client that joins them.

The only package that speaks HTTP, and the only importer of httpx.
"""
