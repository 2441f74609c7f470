"""Show a selection on this machine: easy-vqa is ingested, selected from, and what was kept is drawn.

python jobs/demo_curate.py
"""

import argparse
import sys
from pathlib import Path

import _source  # noqa: F401
from warren.cli.job import Parser, exit_code


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output/curate"), help="emptied first")
    options: argparse.Namespace = parser.parse_args()

    def work() -> None:
        from warren.testbed.curate_demo import demonstrate

        print(f"look at {demonstrate(options.output)}")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
