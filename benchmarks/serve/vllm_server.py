"""vLLM's own server over the same model, where `VLLM_PYTHON` names an environment that has it."""

import os
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from warren.testbed import free_port

_VARIABLE = "VLLM_PYTHON"
_START_TIMEOUT_S = 300.0
_CHAT_TEMPLATE = (  # as Warren's `brief`; releases hold no Jinja
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>\n{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)


def why_not() -> str | None:
    """Return why vLLM is not measured; None where it can be."""
    python = os.environ.get(_VARIABLE)
    if not python:
        return f"{_VARIABLE} is not set"
    return None if Path(python).is_file() else f"{_VARIABLE} names {python}, which does not exist"


class VllmError(RuntimeError):
    """vLLM's server does not come up here."""


class VllmServer:
    """vLLM's OpenAI server in a process group of its own, one compute thread, eager.

    Args:
        folder: The model, in LLaVA layout.
        name: What clients call it.
        max_context_tokens: Prompt and answer together.
        num_slots: Requests that run at the same time.
    """

    def __init__(self, folder: Path, name: str, max_context_tokens: int, num_slots: int) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._home = TemporaryDirectory(prefix="warren-vllm-", ignore_cleanup_errors=True)
        self._command = [os.environ[_VARIABLE], "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        options: dict[str, Any] = {
            "served-model-name": name,
            "port": port,
            "host": "127.0.0.1",
            "dtype": "float32",
            "max-model-len": max_context_tokens,
            "max-num-seqs": num_slots,
        }
        self._command += [text for key, value in options.items() for text in (f"--{key}", str(value))]
        template = Path(self._home.name, "template.jinja")
        template.write_text(_CHAT_TEMPLATE)
        self._command += ["--chat-template", str(template), "--chat-template-content-format", "openai"]
        self._command += ["--enforce-eager", "--no-enable-prefix-caching"]

    def __enter__(self) -> "VllmServer":
        threads = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1"}
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        environment = kept | threads | {"HOME": self._home.name, "HF_HUB_OFFLINE": "1"}
        self._log = (Path(self._home.name) / "log").open("wb")
        self._process = subprocess.Popen(
            self._command, env=environment, stdout=self._log, stderr=self._log, start_new_session=True
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = Path(self._home.name, "log").read_text(errors="replace")
                self.__exit__()
                raise VllmError(f"vLLM did not start: {log[-1000:]}")
            time.sleep(1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, 15)
        self._process.wait(60)
        self._log.close()
        self._home.cleanup()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False
