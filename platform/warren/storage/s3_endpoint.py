"""Endpoint, region and timeouts of S3, for boto3 and pyarrow."""

import os

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60


def endpoint() -> str | None:
    """Return the server's URL; None means AWS."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def region() -> str:
    """Return the region; self-hosted servers accept any."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
