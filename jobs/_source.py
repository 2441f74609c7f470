"""Importing this makes `warren` importable from the source tree, where it is not installed."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("warren") is None:
    tree = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(tree / "platform"), str(tree / "serve")]
