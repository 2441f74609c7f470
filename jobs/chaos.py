"""Train a small recipe undisturbed, and again while its parts are killed; the last line is one JSON object.

python jobs/chaos.py           or: make chaos
"""

import argparse
import json
import sys

import _source  # noqa: F401
from warren.cli.job import Parser, exit_code
from warren.storage.scratch import scratch_folder
from warren.testbed.chaos import KILLS, Chaos

SMALL = (
    "ingest.limit_images=200",
    "pretrain.duration={steps: 240}",
    "pretrain.checkpoint_every_steps=20",
    "pretrain.shuffle_window_samples=256",
)


def main() -> int:
    return exit_code(lambda: run(parser().parse_args()))


def parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--recipe", default="demo", help="name of the recipe (default: demo)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key in every job")
    parser.add_argument("--kill", nargs="*", choices=KILLS, default=KILLS, help="what to kill, in this order")
    return parser


def run(options: argparse.Namespace) -> None:
    with scratch_folder("chaos") as folder:
        result = Chaos(options.recipe, [*SMALL, *options.set], options.kill, folder).run()
    print(json.dumps(result))
    good = result["weights_bit_equal"] and not result["samples_lost"] and not result["samples_repeated"]
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
