"""Show where the rollout of a release stands, or pause, resume, abort or retry it. Needs storage, but no Ray.

python jobs/rollout.py status demo
python jobs/rollout.py abort demo --endpoint chat --reason "answers in the wrong language"
python jobs/rollout.py retry demo --version demo-finetune-00000250
"""

import argparse
import sys

import _source  # noqa: F401
from warren.cli.rollout import main, rollout_parser


def parser() -> argparse.ArgumentParser:
    return rollout_parser(__doc__)


if __name__ == "__main__":
    sys.exit(main(__doc__))
