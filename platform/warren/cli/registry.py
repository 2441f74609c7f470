"""The command line of `jobs/registry.py`: what releases there are, and moving, pinning and removing them."""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from warren.cli.job import Parser, exit_code
from warren.config.environment import STORAGE_VARIABLE, storage_root
from warren.errors import ConfigError, ReleaseError
from warren.release import ALIASES, AliasMove, Registry, Release, gc, plan_gc
from warren.release.garbage_collection import HISTORY_WINDOW, MIN_AGE_S
from warren.release.mlflow_mirror import mirror
from warren.storage import Location

_DAY_S = 24 * 3600
_SHOWN_CHARS = 60

CommandAnswer = tuple[Any, list[str]]
"""The result of a command: as JSON types, and as lines of text."""


def main(description: str, arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit code."""
    options = registry_parser(description).parse_args(arguments)

    def work() -> None:
        root = Location.parse(storage_root())
        value, lines = _COMMANDS[options.command](root, options)
        print(json.dumps(value, indent=2) if options.json else "\n".join(lines))

    return exit_code(work)


def registry_parser(description: str = "") -> argparse.ArgumentParser:
    """Return the job's command line."""
    parser = Parser(description)
    parser.epilog = f"Storage is ${STORAGE_VARIABLE} (s3://bucket/prefix or a folder); S3 is set up by $AWS_*."
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    add = commands.add_parser
    listing = add("list", help="the versions of a release, or of all")
    listing.add_argument("name", nargs="?", help="of the release (default: all)")
    one = add("show", help="one version: lineage, scores, verdict, and the moves of aliases to it")
    two = add("diff", help="in what two versions differ")
    history = add("history", help="every move of an alias")
    promote = add("promote", help="point an alias at a version")
    back = add("rollback", help="point an alias at the version that it named before")
    pin, unpin = add("pin", help="keep a version"), add("unpin", help="keep it no longer")
    collect = add("gc", help="remove the versions that nothing needs; without --yes only say which")
    copy = add("mirror", help="copy versions and aliases into MLflow's model registry")
    copy.add_argument("--to", required=True, metavar="URI", help="of the MLflow server")
    for command in (one, two, history, promote, back, pin, unpin, collect, copy):
        command.add_argument("name", help="of the release")
    for command in (one, promote, pin, unpin):
        command.add_argument("version", help="or an alias: candidate, stable")
    two.add_argument("first", metavar="A", help="a version or an alias")
    two.add_argument("second", metavar="B", help="another")
    for command in (history, promote, back):
        command.add_argument("--alias", choices=ALIASES, default="stable", help="(default: stable)")
    for command in (promote, back, pin):
        command.add_argument("--why", required=True, help="the reason, for people who read the history")
    for command in (promote, back, pin, collect):
        command.add_argument("--who", help="who does it (default: the user's name)")
    collect.add_argument("--yes", action="store_true", help="remove them")
    window = f"moves of each alias whose versions are kept (default: {HISTORY_WINDOW})"
    collect.add_argument("--window", type=int, default=HISTORY_WINDOW, metavar="MOVES", help=window)
    young = f"keep younger versions (default: {MIN_AGE_S / _DAY_S:g})"
    collect.add_argument("--min-age-days", type=float, default=MIN_AGE_S / _DAY_S, metavar="DAYS", help=young)
    for command in (listing, one, two, history, promote, back, pin, unpin, collect, copy):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _list(root: Location, options: argparse.Namespace) -> CommandAnswer:
    names = [options.name] if options.name else Registry.names(root)
    rows = [row for name in names for row in _version_rows(Registry(root, name))]
    return rows, _table(rows) or ["no release yet: jobs/release.py publishes one"]


def _version_rows(registry: Registry) -> list[dict[str, Any]]:
    named: dict[str, list[str]] = {}
    for alias, version in registry.aliases().items():
        named.setdefault(version, []).append(alias)
    pins = registry.pins()
    serving = registry.deployments().items()
    rows = []
    for version in registry.versions():
        row: dict[str, Any] = {"release": registry.name, "version": version, "created": None, "size": None}
        try:
            release = registry.read(version)
        except ReleaseError:  # damaged, or removed since it was listed
            row |= {"scores": "cannot be read"}
        else:
            size = sum(entry.bytes for entry in release.files)
            row |= {"created": release.created, "size": size, "scores": release.scores}
        row |= {"aliases": named.get(version, []), "pinned": version in pins}
        rows.append({**row, "runs in": [endpoint for endpoint, versions in serving if version in versions]})
    return sorted(rows, key=lambda row: (row["created"] or 0, row["version"]))


def _show(root: Location, options: argparse.Namespace) -> CommandAnswer:
    registry = Registry(root, options.name)
    release = registry.read(options.version)
    verdict = registry.verdict(release.version)
    pin = registry.pins().get(release.version)
    moves = {alias: _moves_of(registry.history(alias), release.version) for alias in ALIASES}  # type: ignore[arg-type]
    value = {
        **release.to_json(),
        "verdict": verdict.to_json() if verdict else None,
        "pin": asdict(pin) if pin else None,
        "moves": {alias: [move.to_json() for move in their_moves] for alias, their_moves in moves.items()},
    }
    lines = [f"{release.name} {release.version}, published {_when(release.created)}", *_lineage_lines(release)]
    lines += ["verdict:", *(f"  {line}" for line in verdict.lines())] if verdict else ["verdict: none was recorded"]
    lines += [f"pinned by {pin.who}: {pin.why}"] if pin else []
    for alias, their_moves in moves.items():
        lines += [f"{alias}: {_move_line(move)}" for move in their_moves]
    return value, lines


def _moves_of(moves: Sequence[AliasMove], version: str) -> list[AliasMove]:
    return [move for move in moves if version in (move.before, move.after)]


def _lineage_lines(release: Release) -> list[str]:
    lineage = release.lineage
    lines = [f"score {name}: {value:.4f}" for name, value in release.scores.items()]
    lines += [f"run {lineage.run} at step {lineage.step}, {lineage.stage or 'stage unknown'}"]
    lines += [f"made from: {parent.description}" for parent in lineage.parents]
    for dataset in lineage.datasets:
        free_of = dataset.decontamination.free_of if dataset.decontamination else {}
        free = f"free of {', '.join(free_of)}" if free_of else "no contamination certificate"
        lines.append(f"trained on: {dataset.reference} ({dataset.stage or 'stage unknown'}, {free})")
    lines += [
        f"measured by: {each.options.get('metric')} on {each.options.get('dataset')}" for each in lineage.evaluations
    ]
    packages = " ".join(f"{name}={version}" for name, version in sorted(lineage.packages.items()))
    code = f"recipe {lineage.fingerprint or 'unknown'}, code {lineage.git_revision or 'unknown'}"
    return [*lines, f"{code}; {packages}" if packages else code]


def _diff(root: Location, options: argparse.Namespace) -> CommandAnswer:
    differences = Registry(root, options.name).diff(options.first, options.second)
    rows = [{"what": each.key, options.first: each.first, options.second: each.second} for each in differences]
    return [asdict(each) for each in differences], _table(rows) or ["no difference"]


def _history(root: Location, options: argparse.Namespace) -> CommandAnswer:
    moves = Registry(root, options.name).history(options.alias)
    rows = [{**move.to_json(), "when": _when(move.when)} for move in moves]
    shown = [{key: row[key] for key in ("number", "when", "from", "to", "kind", "who", "why")} for row in rows]
    return [move.to_json() for move in moves], _table(shown) or [f"{options.alias} was never moved"]


def _promote(root: Location, options: argparse.Namespace) -> CommandAnswer:
    registry = Registry(root, options.name)
    version, present = registry.read(options.version).version, registry.alias(options.alias)
    if version == present:
        raise ConfigError(f"the alias {options.alias!r} of {options.name} names {version} already")
    return _moved(registry.move(options.alias, version, present, options.who, _why(options)), options)


def _rollback(root: Location, options: argparse.Namespace) -> CommandAnswer:
    move = Registry(root, options.name).rollback(options.alias, _why(options), options.who)
    return _moved(move, options)


def _moved(move: AliasMove, options: argparse.Namespace) -> CommandAnswer:
    return move.to_json(), [f"{options.name} {options.alias}: {_move_line(move)}"]


def _pin(root: Location, options: argparse.Namespace) -> CommandAnswer:
    registry = Registry(root, options.name)
    version = registry.resolve(options.version)
    pin = registry.pin(version, _why(options), options.who)
    return {"version": version, **asdict(pin)}, [f"{options.name} {version} is pinned by {pin.who}: {pin.why}"]


def _unpin(root: Location, options: argparse.Namespace) -> CommandAnswer:
    registry = Registry(root, options.name)
    version = registry.resolve(options.version)
    registry.unpin(version)
    return {"version": version}, [f"{options.name} {version} is no longer pinned"]


def _mirror(root: Location, options: argparse.Namespace) -> CommandAnswer:
    changes = mirror(Registry(root, options.name), options.to)
    moved = [f"{alias} → {version or 'nothing'}" for alias, version in changes.aliases]
    parts = {"added": changes.added, "removed": changes.removed, "aliases": moved}
    lines = [f"{what}: {', '.join(names)}" for what, names in parts.items() if names]
    return asdict(changes), lines or ["MLflow has it all already"]


def _gc(root: Location, options: argparse.Namespace) -> CommandAnswer:
    if options.window < 0 or options.min_age_days < 0:
        raise ConfigError("--window and --min-age-days must be 0 or more")
    registry = Registry(root, options.name)
    plan = plan_gc(registry, options.window, options.min_age_days * _DAY_S)
    rows = [{"version": version, "becomes": "removed", "because": "nothing needs it"} for version in plan.removed]
    rows += [{"version": version, "becomes": "removed", "because": "was begun earlier"} for version in plan.interrupted]
    rows += [{"version": version, "becomes": "kept", "because": ", ".join(why)} for version, why in plan.kept.items()]
    total = len(plan.removed) + len(plan.kept)
    removed = gc(registry, plan, options.window, options.who) if options.yes else []
    ending = (
        f"removed {len(removed)} of {len(plan.removed) + len(plan.interrupted)}"
        if options.yes
        else (
            f"{_size(plan.num_bytes)} in {len(plan.removed)} of {total} versions would be removed; --yes removes them"
        )
    )
    return {**asdict(plan), "done": removed}, [*_table(rows), ending]


_COMMANDS: Mapping[str, Callable[[Location, argparse.Namespace], CommandAnswer]] = {
    "list": _list,
    "show": _show,
    "diff": _diff,
    "history": _history,
    "promote": _promote,
    "rollback": _rollback,
    "pin": _pin,
    "unpin": _unpin,
    "mirror": _mirror,
    "gc": _gc,
}


def _why(options: argparse.Namespace) -> str:
    """Return the reason.

    Raises:
        ConfigError: It is empty.
    """
    why = " ".join(str(options.why).split())
    if not why:
        raise ConfigError("--why is empty: give the reason, for people who read the history")
    return why


def _move_line(move: AliasMove) -> str:
    way = f"{move.before or 'none'} → {move.after}"
    return f"{way}, {_when(move.when)} by {move.who}: {move.why or 'no reason given'}"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return rows as lines of aligned columns, under the names of the columns."""
    if not rows:
        return []
    cells = [[str(name) for name in rows[0]], *([_cell(name, each) for name, each in row.items()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cell(column: str, value: Any) -> str:
    if value in (None, False, [], {}):
        return "-"
    if column == "created":
        return _when(value)
    if column == "size":
        return _size(value)
    if isinstance(value, Mapping):
        value = [f"{key} {each:.4f}" for key, each in value.items()]
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else "yes" if value is True else str(value)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARS or column in ("why", "version") else f"{text[: _SHOWN_CHARS - 1]}…"


def _when(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) + " UTC"


def _size(num_bytes: int) -> str:
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
