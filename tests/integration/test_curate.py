"""The curate job on a cluster: killed and started again it ends in the same bytes, and a stage trains on its result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster_fixtures import Cluster
from factories import tiny_recipe, tiny_stage
from selecting import STEPS, config_of, files, write_pairs, write_tiny_clip
from warren.cluster.batch.curation import curate
from warren.cluster.train.stage import train_stage
from warren.config import CurateConfig, Duration, Resources
from warren.storage import Location


def start(repository: Path, config: CurateConfig, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    values = yaml.safe_dump(
        json.loads(config.model_dump_json(exclude_none=True)), default_flow_style=True, width=10_000
    )
    command = [sys.executable, "jobs/curate.py", "--set", f"curate={values}"]
    return subprocess.Popen(command, cwd=repository, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)


@pytest.mark.long
def test_a_killed_job_ends_in_the_same_bytes_and_its_selection_is_trained_on(
    ray_cluster: Cluster, repository: Path, tmp_path: Path
) -> None:
    embeddings = {"model": str(write_tiny_clip(tmp_path / "clip"))}
    steps = [{"step": "duplicates"}, *STEPS[1:2], {"step": "near_duplicates", "threshold": 0.9999}, *STEPS[3:5]]
    config = config_of(None, steps, embeddings=embeddings, rewrite_below=0.4)
    roots = [Location(str(tmp_path / name)) for name in ("whole", "killed")]
    for root in roots:
        write_pairs(root)
    whole = curate(config, roots[0])
    assert 0 < whole.rows < 300

    work = tmp_path / "killed/datasets/chosen/v1/curation"
    process = start(repository, config, {**ray_cluster.driver_env, "WARREN_STORAGE": roots[1].uri})
    while not list(work.glob("*/01-cluster/assigned/*")):
        assert process.poll() is None, "the job ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (work.parent / "manifest.json").exists()
    assert curate(config, roots[1]) == whole
    assert files(tmp_path / "killed/datasets/chosen/v1") == files(tmp_path / "whole/datasets/chosen/v1")

    stage = tiny_stage("chosen@v1", template="plain", duration=Duration(steps=2))
    run = train_stage(
        tiny_recipe(pretrain=stage, finetune=None), "pretrain", Resources(num_workers=1), roots[1], "on-a-selection"
    )
    assert run.checkpoints.steps()[-1] == 2
