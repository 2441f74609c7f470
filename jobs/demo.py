"""Run the whole way on this machine, in services it starts and ends itself.

python jobs/demo.py            or: make demo, make demo KEEP=1
"""

import argparse
import sys
from pathlib import Path

import _source  # noqa: F401
from warren.cli.job import Parser, config_folders, exit_code
from warren.config import Recipe, load_config
from warren.testbed.demo import Demo


def main() -> int:
    return exit_code(lambda: run(parser().parse_args()))


def parser() -> argparse.ArgumentParser:
    parser = Parser(__doc__)
    parser.add_argument("--recipe", default="demo", help="name of a recipe, or path of a YAML file (default: demo)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key in every job")
    parser.add_argument("--keep", action="store_true", help="leave the endpoint up until Ctrl-C")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder of the image")
    return parser


def run(options: argparse.Namespace) -> None:
    name = options.recipe
    if Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        name = str(Path(name).resolve())  # jobs run on this machine, but in a copy of this folder
    recipe_sets = [s for s in options.set if not s.startswith(("resources.", "endpoint."))]
    recipe = load_config(Recipe, name, config_folders("recipes"), recipe_sets)
    Demo(recipe, options.set, options.output, options.keep, named=name).run()


if __name__ == "__main__":
    sys.exit(main())
