"""Select samples of datasets: a new dataset version that shares their shards.

ray job submit --working-dir . -- python jobs/curate.py --recipe my-recipe.yaml
"""

import sys

import _source  # noqa: F401
from warren.cli.job import Job, run_job


def main(job: Job) -> None:
    from warren.cluster.batch.curation import curate
    from warren.curate.pipeline import describe

    manifest = curate(job.recipe.require("curate"), job.root)
    print("\n".join(describe(manifest)))
    print(f"{manifest.name}@{manifest.version}: {manifest.rows} samples in {len(manifest.shards)} shards")


if __name__ == "__main__":
    sys.exit(run_job(main, __doc__, needs=["curate"]))
