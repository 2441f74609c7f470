"""The releases in storage: list, show and compare them, move aliases, pin, remove what nothing needs. Needs no cluster.

python jobs/registry.py list demo
python jobs/registry.py show demo stable
python jobs/registry.py diff demo stable candidate
python jobs/registry.py promote demo demo-finetune-00000500 --why "better on birds"
python jobs/registry.py rollback demo --why "answers in the wrong language"
python jobs/registry.py gc demo          # says what it would remove; --yes removes it
"""

import sys

import _source  # noqa: F401
from warren.cli.registry import main
from warren.cli.registry import registry_parser as parser

if __name__ == "__main__":
    sys.exit(main(__doc__))

__all__ = ["main", "parser"]
