"""The short form of `make chaos-rollout`: real engines and storage, good and broken releases, clients all the time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.timeout(900)
def test_releases_roll_in_and_bad_ones_are_undone_without_a_failed_request(repository: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.rollout", "--quick"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["failed_requests"] == 0, report["failures"]
    assert (report["bad_releases_tried"], report["bad_releases_undone"]) == (2, 2)
    assert (report["good_releases_tried"], report["good_releases_rejected"]) == (1, 0)
    assert report["requests"] > 50
    assert report["answered_by_bad_fraction"] == 0.0
    assert "differs from what was published" in " ".join(report["reasons"].values())
