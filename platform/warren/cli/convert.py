"""The command line of `jobs/convert.py`: which function, which folders, errors as one line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from warren.cli.job import Parser, exit_code


def main(description: str, arguments: Sequence[str] | None = None) -> int:
    """Convert as the command line says and return the exit code."""
    options = convert_parser(description).parse_args(arguments)

    def work() -> None:
        from warren.models.local_folders import with_local_folders  # late: --help answers at once

        with_local_folders(lambda *folders: _run(options, *folders), _sources(options), options.target)
        print(f"written: {options.target}")

    return exit_code(work)


def convert_parser(description: str) -> argparse.ArgumentParser:
    """Return the job's command line."""
    parser = Parser(description)
    commands = parser.add_subparsers(dest="command", required=True)

    into = commands.add_parser("import", help="a published Bunny checkpoint to the Hugging Face LLaVA layout")
    into.add_argument("source")
    into.add_argument("target")
    into.add_argument("--base", help="the model a LoRA or stage-1 checkpoint was trained from")

    out = commands.add_parser("export", help="a model to another layout")
    out.add_argument("--layout", required=True, choices=("llava", "bunny"))
    out.add_argument("source")
    out.add_argument("target")

    merge = commands.add_parser("merge", help="a LoRA adapter into its base")
    merge.add_argument("adapter")
    merge.add_argument("base")
    merge.add_argument("target")

    average = commands.add_parser("average", help="WEIGHT of the first model and the rest of the second")
    average.add_argument("first")
    average.add_argument("second")
    average.add_argument("target")
    average.add_argument("--weight", type=float, required=True)

    for command in (into, merge):
        command.add_argument("--vision-tower", help="folder of the tower, instead of the one config.json names")
    for command in (into, out):
        command.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of the weights written")
    return parser


def _sources(options: argparse.Namespace) -> list[str | None]:
    if options.command == "import":
        return [options.source, options.base, options.vision_tower]
    if options.command == "export":
        return [options.source]
    if options.command == "merge":
        return [options.adapter, options.base, options.vision_tower]
    return [options.first, options.second]


def _run(options: argparse.Namespace, *folders: Path) -> None:
    import torch

    from warren import models

    *sources, target = folders
    dtype = getattr(torch, getattr(options, "dtype", None) or "float32")
    if options.command == "import":
        models.import_bunny(sources[0], target, sources[1], sources[2], dtype)
    elif options.command == "export":
        models.export_model(options.layout, sources[0], target, dtype if options.dtype else None)
    elif options.command == "merge":
        models.merge_adapter(sources[0], sources[1], target, sources[2])
    else:
        models.average_models(sources[0], sources[1], options.weight, target)
