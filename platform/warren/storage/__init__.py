"""One place that turns a URI into storage: `s3://`, `file://` and plain paths behave alike."""

from warren.storage.digests import FileEntry, digest_bytes, digest_file
from warren.storage.location import Location
from warren.storage.transfer import download_tree, read_verified, upload_verified

__all__ = [
    "FileEntry",
    "Location",
    "digest_bytes",
    "digest_file",
    "download_tree",
    "read_verified",
    "upload_verified",
]
