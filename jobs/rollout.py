"""Show where the rollout of a release stands, or pause, resume, abort or retry it; or delete the endpoint.

Needs storage; only `delete` needs Ray.

python jobs/rollout.py status demo
python jobs/rollout.py abort demo --endpoint chat --reason "answers in the wrong language"
python jobs/rollout.py retry demo --version demo-finetune-00000250
ray job submit --working-dir . -- python jobs/rollout.py delete demo
"""

import argparse
import sys

import _source  # noqa: F401
from warren.cli.rollout import main, rollout_parser


def parser() -> argparse.ArgumentParser:
    return rollout_parser(__doc__)


if __name__ == "__main__":
    sys.exit(main(__doc__))
