"""Train a small recipe in peace, and again while its parts are killed; the last line is one JSON object.

python jobs/chaos.py           or: make chaos
"""

import argparse
import json
import signal
import sys

import _source  # noqa: F401
from warren.errors import WarrenError
from warren.storage.scratch import scratch_folder

SMALL = (
    "ingest.limit_images=200",
    "pretrain.duration={steps: 240}",
    "pretrain.checkpoint_every_steps=20",
    "pretrain.shuffle_window_samples=256",
)


def main() -> int:
    from warren.cluster.chaos import KILLS, Chaos

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo", help="name of the recipe (default: demo)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key in every job")
    parser.add_argument("--kill", nargs="*", choices=KILLS, default=KILLS, help="what to kill, in this order")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the services end with it
    with scratch_folder("chaos") as folder:
        try:
            figures = Chaos(options.recipe, [*SMALL, *options.set], options.kill, folder).run()
        except WarrenError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(json.dumps(figures))
    good = figures["weights_bit_equal"] and not figures["samples_lost"] and not figures["samples_repeated"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
