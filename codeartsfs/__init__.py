"""Huawei Cloud CodeArts build logs as ordinary files."""

__version__ = "0.1.0.dev0"
