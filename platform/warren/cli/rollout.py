"""The command line of `jobs/rollout.py`: show an endpoint's rollout, send its controller a command, or delete it."""

import argparse
import getpass
import json
from collections.abc import Sequence
from datetime import UTC, datetime

from warren.cli.job import Parser, exit_code
from warren.config.environment import storage_root
from warren.errors import ReleaseError
from warren.release import read_alias, write_deployment
from warren.rollout.state_store import RolloutFiles, RolloutRecord
from warren.rollout.waiting import wait_until_serving
from warren.storage import Location

_SHOWN_EVENTS = 10
_COMMANDS: dict[str, str] = {
    "pause": "keep the rollout at its step, and begin no other",
    "resume": "continue a rollout that was paused",
    "abort": "undo the candidate; it is not tried again by itself",
    "retry": "try a version again that was undone; without --version, all of them",
}


def main(description: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    return exit_code(lambda: _run(rollout_parser(description).parse_args(arguments)))


def rollout_parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(description)
    commands = parser.add_subparsers(dest="command", required=True)
    looking = {
        "status": "show where the rollout stands",
        "wait": "wait until a version serves; fails with the reason if it is undone",
        "delete": "delete the endpoint and its engines from the cluster; needs Ray",
    }
    for command, text in {**looking, **_COMMANDS}.items():
        each = commands.add_parser(command, help=text)
        each.add_argument("name", help="name of the release")
        each.add_argument("--endpoint", default="chat", help="name of the endpoint's application (default: chat)")
        each.add_argument("--json", action="store_true", help="print one JSON object")
        if command in _COMMANDS:
            each.add_argument("--reason", default="", help="why; stored with the command")
        if command == "retry":
            each.add_argument("--version", help="the version")
        if command == "wait":
            each.add_argument("--version", help="the version (default: the alias candidate)")
            each.add_argument("--timeout-s", type=float, default=7200.0, help="how long (default: 7200)")
    return parser


def _run(options: argparse.Namespace) -> None:
    root = Location.parse(storage_root())
    files = RolloutFiles(root, options.name, options.endpoint)
    record = files.read()
    if record.epoch == 0:
        raise ReleaseError(
            f"no rollout controller has written for the release {options.name!r} and the endpoint "
            f"{options.endpoint!r}: name the endpoint's application with --endpoint, or deploy it with jobs/release.py"
        )
    if options.command == "delete":
        _delete(root, options)
        return
    if options.command == "status":
        aliases = {alias: read_alias(root, options.name, alias) for alias in ("stable", "candidate")}
        shown = {**record.to_json(), "aliases": aliases}
        print(json.dumps(shown) if options.json else "\n".join(status_lines(record, aliases)))
        return
    if options.command == "wait":
        version = options.version or read_alias(root, options.name, "candidate")
        if version is None:
            raise ReleaseError(f"nothing to wait for: no release of {options.name!r} was ever candidate")
        wait_until_serving(files, version, options.timeout_s)
        print(json.dumps({"serving": version}) if options.json else f"serving: {options.name} {version}")
        return
    version = options.version if options.command == "retry" else None
    sent = files.send(options.command, version, getpass.getuser(), options.reason)
    print(json.dumps({"number": sent.number, "action": sent.action}) if options.json else f"sent: {sent.action}")


def _delete(root: Location, options: argparse.Namespace) -> None:
    """Delete an endpoint and its engines from the cluster; releases, aliases and the rollouts' history stay."""
    from warren.cluster.serve.endpoint import delete_endpoint  # late: the other commands need no Ray
    from warren.cluster.session import connect

    connect()
    deleted = delete_endpoint(options.endpoint)
    write_deployment(root, options.name, options.endpoint, [])
    print(json.dumps({"deleted": deleted}) if options.json else f"deleted: {' '.join(deleted) or 'nothing was there'}")


def status_lines(record: RolloutRecord, aliases: dict[str, str | None]) -> list[str]:
    """Return the state as text, and the last events."""
    state = record.state
    step = f", step {state.step + 1}" if state.phase == "shifting" else ""
    lines = [
        f"phase:     {state.phase}{step}{' (paused)' if state.is_paused else ''}",
        f"serving:   {state.stable or 'nothing'}",
        f"candidate: {state.candidate or 'none'}",
        f"aliases:   stable={aliases['stable']} candidate={aliases['candidate']}",
    ]
    lines += [f"refused:   {version}: {reason}" for version, reason in state.refused.items()]
    for event in record.events[-_SHOWN_EVENTS:]:
        at = datetime.fromtimestamp(event["at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        reason = f": {event['reason']}" if event["reason"] else ""
        lines.append(f"{at}  {event['version']} {event['phase']} {event['step']}{reason}")
    return lines
