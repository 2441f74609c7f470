"""Releases: immutable published models with lineage, aliases that move by compare-and-swap, and the gate."""

from warren.release.aliases import ALIASES, move_alias, read_alias, resolve_release
from warren.release.gate import check_gate
from warren.release.release import GoldenWriter, Release, fetch_release, publish, read_release, release_folder

__all__ = [
    "ALIASES",
    "GoldenWriter",
    "Release",
    "check_gate",
    "fetch_release",
    "move_alias",
    "publish",
    "read_alias",
    "read_release",
    "release_folder",
    "resolve_release",
]
