"""Asking an engine one sanity question, from a thread."""

import base64
import logging
import time

from ray.serve.handle import DeploymentHandle

from warren.rollout.answer_checks import Reply, SanityQuestion
from warren_serve.backend import EngineRequest
from warren_serve.errors import ApiError
from warren_serve.prompt import detach_images
from warren_serve.protocol import ChatRequest

logger = logging.getLogger(__name__)


def ask_engine(engines: DeploymentHandle, question: SanityQuestion, model: str, timeout_s: float) -> Reply:
    """Return the greedy answer of any replica of some engines.

    Args:
        engines: A handle whose calls stream.
        question: Its image is sent as it is.
        model: The model's name for clients.
        timeout_s: Time for the answer; later ones count as failed.
    """
    deadline, texts = time.monotonic() + timeout_s, []
    chunks = engines.answer.remote(_request(question, model))
    try:
        for chunk in chunks:
            if isinstance(chunk, ApiError):
                raise chunk
            texts += [delta.text for _, delta in chunk.deltas]
            if time.monotonic() > deadline:
                raise TimeoutError(f"no whole answer within {timeout_s:g} s")
    except Exception as error:  # of any type: a failure is an answer, too
        logger.warning("the question %r failed: %s", question.text[:80], error)
        return Reply(None)
    return Reply("".join(texts))


def _request(question: SanityQuestion, model: str) -> EngineRequest:
    parts: list[dict[str, object]] = [{"type": "text", "text": question.text}]
    if question.image is not None:
        url = "data:application/octet-stream;base64," + base64.b64encode(question.image).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    body = {
        "model": model,
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": question.max_tokens,
        "temperature": 0,
    }
    request = detach_images(ChatRequest.model_validate(body))
    return EngineRequest(request, () if question.image is None else (question.image,))
