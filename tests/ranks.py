"""Code on several ranks: processes in a gloo group on this machine, without Ray."""

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

_PRELOADED = ["deepspeed", "peft", "transformers.models.llava.modeling_llava"]  # imported once, not once a rank

Result = TypeVar("Result")


def run_on_ranks(world_size: int, work: Callable[..., Result], *arguments: Any) -> list[Result]:
    """Call `work(rank, world_size, *arguments)` in a process for each rank and return what each returned."""
    with TemporaryDirectory(prefix="warren-ranks-") as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        multiprocessing.set_forkserver_preload(_PRELOADED)
        shared = (world_size, port, folder, work, arguments)
        start_processes(_rank, shared, nprocs=world_size, start_method="forkserver")  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank(
    rank: int, world_size: int, port: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    warnings.simplefilter("ignore")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))  # DeepSpeed asks for them
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    try:
        torch.save(work(rank, world_size, *arguments), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
