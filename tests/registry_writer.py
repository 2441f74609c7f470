"""A process that writes to the registry beside others: `python registry_writer.py NUMBER`.

Its standard input has two lines for each race: `[root, what, arguments…]` as JSON, and, when all writers are ready,
any line as the signal to begin. It prints `ready`, and then what it did as JSON.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from releases import NAME, stored_model
from warren.errors import ConflictError, ReleaseError
from warren.release import Lineage, Registry, gc, plan_gc, publish
from warren.storage import Location

MOVES = 4


def move(registry: Registry, number: str, *_: str) -> list[str]:
    """Move the alias until it worked so many times, each time from where it is."""
    done: list[str] = []
    while len(done) < MOVES:
        why = f"{number}-{len(done)}"
        try:
            registry.move("stable", f"v{1 + len(done) % 2}", registry.alias("stable"), who=number, why=why)
        except ConflictError:
            continue
        done.append(why)
    return done


def publish_once(registry: Registry, number: str, folder_name: str) -> list[str]:
    """Publish the version that all publish: the even ones one model, the odd ones another."""
    text = ("even", "odd")[int(number) % 2]
    folder = Path(folder_name) / number
    folder.mkdir()
    model = stored_model(registry.root / f"checkpoints-{number}", folder, text)
    try:
        publish(registry.root, NAME, "contested", model, Lineage(run=number), {})
    except ReleaseError as error:
        return ["refused", str(error)]
    return ["published", text]


def promote_or_collect(registry: Registry, number: str, *_: str) -> list[str]:
    """The even ones move the alias to a version that nothing needs yet, the odd ones remove what nothing needs."""
    if int(number) % 2:
        return gc(registry, plan_gc(registry, window=1, min_age_s=0), window=1)
    try:
        registry.move("stable", "v2", registry.alias("stable"), why=number)
    except (ConflictError, ReleaseError) as error:
        return [type(error).__name__]
    return ["moved"]


WHAT: Mapping[str, Callable[..., list[str]]] = {"move": move, "publish": publish_once, "collect": promote_or_collect}

if __name__ == "__main__":
    for line in sys.stdin:
        root, what, *arguments = json.loads(line)
        registry = Registry(Location.parse(root), NAME)
        registry.versions()  # connected before the others begin
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(WHAT[what](registry, sys.argv[1], *arguments)), flush=True)
