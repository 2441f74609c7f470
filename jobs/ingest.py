"""Turn raw image-text pairs into datasets: checked Parquet shards and a manifest.

ray job submit --working-dir . -- python jobs/ingest.py --recipe demo
"""

import sys

import _source  # noqa: F401
from warren.cluster.cli import Job, run_job


def main(job: Job) -> None:
    from warren.cluster.ingestion import ingest

    for manifest in ingest(job.recipe.require("ingest"), job.root):
        print(f"{manifest.name}@{manifest.version}: {manifest.rows} samples in {len(manifest.shards)} shards")


if __name__ == "__main__":
    sys.exit(run_job(main, __doc__, needs=["ingest"]))
