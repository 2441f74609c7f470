"""Importing this lets a job import `warren` from the source tree it lies in; in the image, from the installation."""

import sys
from pathlib import Path

tree = Path(__file__).resolve().parent.parent
if (tree / "platform" / "warren").is_dir():
    sys.path[:0] = [str(tree / "platform"), str(tree / "serve")]
