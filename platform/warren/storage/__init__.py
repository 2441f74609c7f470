"""Storage by URI: `s3://`, `file://` and plain paths behave alike."""

from warren.storage.digests import FileEntry, check_relative, digest_bytes, digest_file
from warren.storage.files import apply_umask
from warren.storage.location import Location
from warren.storage.transfer import StoredFiles, download_tree, path_below, read_verified, upload_verified

__all__ = [
    "FileEntry",
    "Location",
    "StoredFiles",
    "apply_umask",
    "check_relative",
    "digest_bytes",
    "digest_file",
    "download_tree",
    "path_below",
    "read_verified",
    "upload_verified",
]
