"""The lines of the Dockerfile are run, in an overlay over this machine's root. Not run: the base image itself."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dockerfile import DOCKER as DOCKER_FOLDER
from dockerfile import ScratchRoot, chain, stages

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="an overlay needs root on Linux"),
    pytest.mark.skipif(not Path("/usr/bin/apt-get").exists(), reason="the base image is Debian's"),
    pytest.mark.skipif(platform.python_version_tuple()[:2] != ("3", "11"), reason="the images have Python 3.11"),
]
LOCAL_WHEELS = subprocess.run(
    [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True, check=False
).stdout.strip()


def test_the_wheel_is_built_and_found(tmp_path: Path) -> None:
    root = ScratchRoot(tmp_path)
    root.build(stages()[1]["wheel"], {})
    (pattern,) = {word for text in chain("cpu")[-1].texts("RUN") for word in text.split() if word.endswith(".whl")}
    listing = root.run(f"ls {pattern} && python -m zipfile -l {pattern}")
    assert "warren/jobs/recipes/demo.yaml" in listing
    assert "warren_serve/app.py" in listing


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_cpu_image_runs_as_the_manifests_have_it(tmp_path: Path) -> None:
    root = ScratchRoot(tmp_path)
    for stage in [stages()[1]["wheel"], *chain("cpu")]:
        root.build(stage, {"TORCH_CPU_WHEELS": LOCAL_WHEELS} if LOCAL_WHEELS else {})
    assert root.run("id --user").strip() == "1000"
    for path in ("/opt/warren/jobs/pretrain.py", "/usr/local/lib/python3.11/site-packages/warren/__init__.py"):
        assert root.run(f"echo x >> {path} && echo written", check=False).strip().endswith("Permission denied")
    assert "usage" in root.run("python jobs/pretrain.py --help", read_only=True)
    seen = root.run(
        "python jobs/pretrain.py --recipe demo --dry-run 2>&1 | tail -3; ray --version; weed version", read_only=True
    )
    assert "ray, version" in seen
    assert "SeaweedFS" in seen
    compiled = "import torch; print(torch.compile(lambda x: (x * 2).sin())(torch.ones(3)).shape)"
    assert "torch.Size([3])" in root.run(f"python -c '{compiled}'", read_only=True)


def test_the_locks_are_the_scripts() -> None:
    for path in (DOCKER_FOLDER / "requirements").glob("*.txt"):
        assert path.read_text().splitlines()[1].strip("# ") == "infra/docker/lock.sh"
