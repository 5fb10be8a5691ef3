"""The CodeArts Build API and its IAM, served on loopback from recordings, with faults on request.

The demo, the benchmarks and the tests talk to it; nothing in the mount imports it.
"""
