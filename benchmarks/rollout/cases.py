"""The cases: releases that are good or broken, and parts that are killed while a release rolls in."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from benchmarks.rollout import releases
from benchmarks.rollout.load import Load
from benchmarks.rollout.world import World
from warren.rollout.state_machine import Phase

_ROLLOUT_TIMEOUT_S = 1800.0
_S3_AWAY_S = 5.0
_BALLAST_BYTES = 96 << 20
HEAD = "head"
"""The case whose failures are counted apart."""


@dataclass(frozen=True)
class Rolled:
    """What became of one release.

    Attributes:
        case: Its name.
        is_bad: Whether it had to be undone.
        is_undone: Whether it was.
        reason: Why.
        seconds_by_phase: How long each phase took.
    """

    case: str
    version: str
    is_bad: bool
    is_undone: bool
    reason: str
    seconds_by_phase: Mapping[str, float]


@dataclass
class Run:
    """One run of the benchmark.

    Attributes:
        world: What it runs on.
        load: The clients.
        crash_after: Requests after which the crashing release dies, again and again.
        rolled: What became of the releases so far.
        head_away_s: How long nobody was answered when the head was restarted; None if it was not.
    """

    world: World
    load: Load
    crash_after: int
    rolled: list[Rolled] = field(default_factory=list)
    head_away_s: float | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(2))

    def roll(
        self,
        case: str,
        change: releases.Change | None = None,
        is_bad: bool = False,
        certify_first: bool = False,
        prepare: Callable[[str], None] = lambda version: None,
        meanwhile: Callable[[str], None] = lambda version: None,
    ) -> None:
        """Let a release roll in, and wait for the end.

        Args:
            case: Its name.
            change: Makes it of the first model; None makes a later checkpoint.
            is_bad: Whether it has to be undone.
            certify_first: See `Releases.publish`.
            prepare: Called before it is proposed.
            meanwhile: Called while it rolls in, in a thread.
        """
        version = f"{case}-{next(self._numbers)}"
        self.load.phase = version
        self.world.releases.publish(version, change, certify_first)
        prepare(version)
        begin_s = time.monotonic()
        self.world.releases.propose(version)
        with self._beside(meanwhile, version):
            self.world.until(lambda: self.world.is_over(version), f"the end of {version}", _ROLLOUT_TIMEOUT_S)
        state = self.world.watch.state
        spent = self.world.watch.seconds_by_phase(version, begin_s)
        done = Rolled(case, version, is_bad, version in state.refused, state.refused.get(version, ""), spent)
        self.rolled.append(done)
        print(f"{version}: {'undone: ' + done.reason if done.is_undone else 'serves'} {dict(spent)}", flush=True)

    @contextmanager
    def _beside(self, action: Callable[[str], None], version: str) -> Iterator[None]:
        thread = threading.Thread(target=action, args=(version,), name="meanwhile")
        thread.start()
        yield
        thread.join()


def good(run: Run) -> None:
    """A later checkpoint."""
    run.roll("good")


def corrupt(run: Run) -> None:
    """Bytes of the weights were turned over in storage."""
    run.roll("corrupt", is_bad=True, prepare=run.world.releases.damage)


def garbage(run: Run) -> None:
    """It loads, passes its certificate, and answers one token over and over."""
    run.roll("garbage", releases.silence, is_bad=True)


def slow(run: Run) -> None:
    """The same answers, about ten times slower."""
    run.roll("slow", releases.slow, is_bad=True)


def worse(run: Run) -> None:
    """Three points worse on the questions whose answers are known."""
    run.roll("worse", run.world.releases.worse(), is_bad=True)


def blind(run: Run) -> None:
    """It ignores the image."""
    run.roll("blind", releases.blind, is_bad=True)


def template(run: Run) -> None:
    """It is served with another prompt template than it was trained with."""
    run.roll("template", releases.other_template, is_bad=True, certify_first=True)


def crashing(run: Run) -> None:
    """Its engine dies with every so-manieth request."""

    def crash(version: str) -> None:
        num_crashes = 0
        while not run.world.is_over(version):
            if run.load.answered_by(version) >= (num_crashes + 1) * run.crash_after:
                num_crashes += 1
                with suppress(RuntimeError):
                    run.world.kill_engine(version)
            time.sleep(0.1)

    run.roll("crashing", is_bad=True, meanwhile=crash)


def controller(run: Run) -> None:
    """The controller is killed in every phase, of a good release's rollout and of a bad one's way back."""

    def killer(phase: Phase) -> Callable[[str], None]:
        return lambda version: run.world.kill_controller() if run.world.until_phase(version, phase) else None

    phases: tuple[Phase, ...] = ("verifying", "starting", "shifting", "finishing")
    for phase in phases:
        run.roll(f"controller-{phase}", meanwhile=killer(phase))
    run.roll("controller-back", releases.silence, is_bad=True, meanwhile=killer("rolling_back"))


def stable(run: Run) -> None:
    """A replica of the serving release is killed while a good one rolls in."""
    serving = run.world.watch.state.stable or ""
    _kill_while_shifting(run, "stable", lambda version: serving)


def candidate(run: Run) -> None:
    """A replica of a good candidate is killed, once."""
    _kill_while_shifting(run, "candidate", lambda version: version)


def storage(run: Run) -> None:
    """Storage goes away while the candidate is downloaded, and comes back."""

    def take_away(version: str) -> None:
        if not run.world.until_phase(version, "starting"):
            return
        run.world.until(lambda: _downloading(run), "a download")
        print("  killing storage", flush=True)
        run.world.server.kill()
        time.sleep(_S3_AWAY_S)
        run.world.server.start()

    run.roll("storage", releases.heavy(_BALLAST_BYTES), meanwhile=take_away)


def head(run: Run) -> None:
    """Every process of the cluster is killed, and the head starts again with its persistent state.

    This cluster has one node, so nobody can be answered meanwhile: its failures are counted apart.
    """

    def restart(version: str) -> None:
        if run.world.until_phase(version, "shifting", step=1):
            begin_s = time.monotonic()
            run.world.restart_head()
            num_before = len(run.load.outcomes)
            answered = lambda: any(not one.error for one in run.load.outcomes[num_before:])  # noqa: E731
            run.world.until(answered, "an answer after the head was restarted")
            run.head_away_s = round(time.monotonic() - begin_s, 1)

    run.roll(HEAD, meanwhile=restart)


def _downloading(run: Run) -> bool:
    files = list(run.world.cache.glob("*/partial/ballast.bin*"))
    return any(0 < file.stat().st_size < _BALLAST_BYTES for file in files)


def _kill_while_shifting(run: Run, case: str, victim: Callable[[str], str]) -> None:
    def kill(version: str) -> None:
        if run.world.until_phase(version, "shifting", step=1):
            run.world.kill_engine(victim(version))

    run.roll(case, meanwhile=kill)


CASES: Mapping[str, Callable[[Run], None]] = {
    each.__name__: each
    for each in (
        *(good, corrupt, garbage, slow, worse, blind, template, crashing),
        *(controller, stable, candidate, storage, head),
    )
}
