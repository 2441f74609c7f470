"""The Dockerfile as instructions, and a scratch root in which its lines are run where there is no container engine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
DOCKER = REPOSITORY / "infra" / "docker"
_PASSED_ON = ("PIP_", "HTTP", "http", "NO_PROXY", "no_proxy", "SSL_", "REQUESTS_")  # how this machine reaches PyPI
_BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"


@dataclass(frozen=True)
class Instruction:
    """One instruction: `RUN`, its `--` options, and the rest of it."""

    name: str
    options: tuple[str, ...]
    text: str

    @property
    def words(self) -> list[str]:
        """The text, cut at white space."""
        return self.text.split()


@dataclass
class Stage:
    """One stage: what it begins with, and its instructions."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def texts(self, name: str) -> list[str]:
        """Return what the stage's instructions of one name say."""
        return [each.text for each in self.instructions if each.name == name]


def instructions(text: str) -> Iterator[Instruction]:
    """Cut a Dockerfile into instructions; comments go, continued lines are joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, *words = line.split(" ")
        words = [word for word in words if word]
        count = next((n for n, word in enumerate(words) if not word.startswith("--")), len(words))
        yield Instruction(name, tuple(words[:count]), " ".join(words[count:]))


def stages() -> tuple[list[Instruction], dict[str, Stage]]:
    """Return what stands before the first stage, and the stages by name."""
    before: list[Instruction] = []
    found: dict[str, Stage] = {}
    for instruction in instructions((DOCKER / "Dockerfile").read_text()):
        if instruction.name == "FROM":
            base, _, name = instruction.words
            found[name] = Stage(name, base)
        elif found:
            next(reversed(found.values())).instructions.append(instruction)
        else:
            before.append(instruction)
    return before, found


def chain(name: str) -> list[Stage]:
    """Return a stage and those it is based on, the lowest first."""
    _, found = stages()
    stage = found[name]
    return [*(chain(stage.base) if stage.base in found else []), stage]


class ScratchRoot:
    """An overlay over this machine's root: what is run in it writes below `folder` only. Needs root on Linux.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self._upper, self._work, self._merged = (folder / name for name in ("upper", "work", "merged"))
        for path in (self._upper, self._work, self._merged):
            path.mkdir()
        self._arguments: dict[str, str] = {}
        self._environment = {"PATH": _BASE_PATH, "HOME": "/root", "LD_LIBRARY_PATH": "/usr/local/lib"}
        self._directory = "/"
        self._user = "0:0"
        self._imitate_base_image()

    def build(self, stage: Stage, arguments: Mapping[str, str]) -> None:
        """Obey a stage's instructions, all of one root: a file of another stage is where that stage wrote it."""
        self._user = "0:0"
        for instruction in stage.instructions:
            match instruction.name:
                case "ARG":
                    name, _, default = instruction.text.partition("=")
                    self._arguments[name] = arguments.get(name, default)
                case "ENV":
                    self._environment |= dict(word.split("=", 1) for word in instruction.words)
                case "WORKDIR":
                    self._directory = instruction.text
                    (self._upper / self._directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
                case "USER":
                    self._user = instruction.text
                case "COPY":
                    self._copy(instruction)
                case "RUN":
                    self.run(instruction.text, instruction.options)
                case other:
                    raise NotImplementedError(other)

    def run(self, command: str, mounts: tuple[str, ...] = (), read_only: bool = False, check: bool = True) -> str:
        """Run a shell command as the user, and return what it printed.

        Args:
            mounts: Options of a `RUN`: bind mounts of the build context.
            read_only: With a read-only root, and /tmp, /dev/shm and the home as the manifests have them.
        """
        merged = str(self._merged)
        overlay = f"lowerdir=/,upperdir={self._upper},workdir={self._work}"
        script = [f"mount -t overlay overlay -o {overlay} {merged}", f"mount -t proc proc {merged}/proc"]
        script += [f"mount --rbind /dev {merged}/dev"]
        for option in mounts:
            values = dict(part.split("=", 1) for part in option.removeprefix("--mount=").split(","))
            assert values["type"] == "bind", option
            if "from" in values:  # all stages are in this root
                assert values["source"] == values["target"], option
                continue
            target = merged + values["target"]
            script += [f"mkdir -p {target}", f"mount --bind -o ro {REPOSITORY / values['source']} {target}"]
        if read_only:
            script += [f"mount -o remount,ro {merged}", f"mount -t tmpfs tmpfs {merged}/tmp"]
            script += [f"mount -t tmpfs -o uid=1000,gid=1000 tmpfs {merged}{self._environment['HOME']}"]
        passed = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        environment = {**passed, **self._arguments, **self._environment}
        inner = ["chroot", f"--userspec={self._user}", merged, "/usr/bin/env", "-i", "-C", self._directory]
        inner += [*(f"{name}={value}" for name, value in environment.items()), "/bin/bash", "-c", command]
        outer = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        result = subprocess.run(
            [*outer, "bash", "-euc", "\n".join([*script, 'exec "$@"']), "bash", *inner],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or result.returncode == 0, f"{command}\n{result.stdout[-4000:]}"
        return result.stdout

    def _imitate_base_image(self) -> None:
        """Put Python with nothing but pip where the base image has it, and leave out this machine's users."""
        if sys.base_prefix == "/usr/local":
            raise NotImplementedError("Python in /usr/local may have packages already")

        def but_pip(folder: str, names: list[str]) -> list[str]:
            return [name for name in names if not name.startswith("pip")] if folder.endswith("/site-packages") else []

        local = self._upper / "usr" / "local"
        shutil.copytree(sys.base_prefix, local, symlinks=True, ignore=but_pip)
        (self._upper / "etc").mkdir()
        for name in ("passwd", "group"):
            lines = Path("/etc", name).read_text().splitlines(keepends=True)
            kept = [line for line in lines if int(line.split(":")[2]) < 1000]
            (self._upper / "etc" / name).write_text("".join(kept))

    def _copy(self, instruction: Instruction) -> None:
        assert not instruction.options, "COPY with options is not emulated"
        *sources, target = instruction.words
        folder = self._upper / self._directory.lstrip("/")
        for source in sources:
            origin = REPOSITORY / source
            if origin.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.py[cod]", ".env*")
                shutil.copytree(origin, folder / target, ignore=ignored)
            else:
                shutil.copy(origin, folder / target)
