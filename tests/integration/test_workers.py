"""What a Ray worker sees when the repository is its working directory."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

PROBE = """
import _source
import ray
from warren.cluster.session import connect
connect()
@ray.remote
def look():
    import platform, warren, warren_serve
    return platform.__file__, warren.__file__, warren_serve.__file__
print("SEEN", *ray.get(look.remote()))
"""


def test_platform_is_the_standard_librarys_and_warren_travels_along(
    repository: Path, ray_cluster: Any, tmp_path: Path
) -> None:
    for name in ("platform", "serve", "jobs"):
        (tmp_path / name).symlink_to(repository / name)
    (tmp_path / "probe.py").write_text(f"import sys; sys.path.insert(0, 'jobs')\n{PROBE}")
    program = str(Path(sys.executable).parent / "ray")
    found = subprocess.run(
        [program, "job", "submit", "--working-dir", str(tmp_path), "--", "python", "probe.py"],
        env={**os.environ, **ray_cluster.env},
        capture_output=True,
        text=True,
        timeout=180,
    )
    [line] = [line for line in found.stdout.splitlines() if line.startswith("SEEN")]
    _, standard, *shipped = line.split()
    assert Path(standard).parent == Path(sysconfig.get_paths()["stdlib"])
    assert all("py_modules_files" in path for path in shipped)  # not this machine's copy
