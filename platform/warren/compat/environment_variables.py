"""Environment variables that libraries read when a process starts, by what Warren wants of them.

They must be there before the library is loaded, so they are passed to new processes. Ray's and DeepSpeed's are in the
modules of those libraries.
"""

QUIET_LIBRARIES = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Libraries of Hugging Face print no bars and warnings.

Why: Workers print to the job's log. tokenizers warns in every process that was forked, as Ray's are.
Upstream: tokenizers 0.23, `transformers/utils/logging.py` and `huggingface_hub/constants.py`.
If it breaks: Logs get longer; look up the variables in the libraries' documentation.
"""

ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""A process's threads share one heap.

Why: A worker trains in a thread that Ray starts. glibc gives each such thread a heap of its own, which cost 0.2 GiB.
Upstream: glibc's `mallopt(3)`, `M_ARENA_MAX`.
If it breaks: Workers take more memory.
"""

IDLE_THREADS_SLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Compute threads that wait do not spin.

Why: On shared cores spinning made answers ten times slower.
Upstream: The OpenMP specification, `OMP_WAIT_POLICY`, as libgomp, which torch ships for CPUs, reads it.
If it breaks: Replicas that share cores are slow.
"""

ONE_COMPUTE_THREAD = {"OMP_NUM_THREADS": "1"}
"""A process computes on one thread.

Why: Many processes of a demo or a test share a laptop's few cores.
Upstream: The OpenMP specification, `OMP_NUM_THREADS`, as libgomp, which torch ships for CPUs, reads it.
If it breaks: Everything on one machine is slow.
"""
