"""The exceptions Warren raises.

Catch `WarrenError` for all of them, a branch for one concern, or a leaf for one cause:

    WarrenError
    ├── ConfigError                 a recipe, an option or the environment is wrong
    ├── StorageError                object storage or a disk did not do what was asked
    │   ├── NotFoundError           no such object or file
    │   ├── BucketNotFoundError     no such bucket: nothing below it can be there
    │   ├── AccessDeniedError       credentials are missing, wrong or too weak
    │   └── ConflictError           a conditional write lost: the object is there already, or changed
    ├── DataError                   a dataset or a sample is wrong
    │   ├── BadSampleError          one sample cannot be used (it is quarantined)
    │   │   └── SampleTooLongError      nothing useful of it fits into max_length_tokens
    │   ├── QuarantineError         more samples were quarantined than the recipe allows
    │   ├── EmptyDatasetError       nothing is left to train or evaluate on
    │   └── CorruptDataError        bytes differ from what the manifest promised
    │       └── UnsafePathError     a manifest names a file outside its own folder
    ├── ModelError                  a model folder cannot be read, converted or written
    ├── TrainingError               a run cannot start, go on or be resumed
    │   └── CheckpointError         a checkpoint is incomplete or does not fit the run
    │       └── DamagedCheckpointError  its files are not what its manifest promised
    ├── ReleaseError                a release is missing, broken or refused
    │   └── GateError               a release did not reach what its gate asks for
    └── ServiceError                a service (Ray, S3 server, Serve, an engine) did not start or answer
        └── EngineError             a generation engine refused or lost a request (warren.inference)

Every message says what was given, what is allowed and what to do next. All of them carry one string, so they
survive pickling between Ray processes.
"""


class WarrenError(Exception):
    """Anything Warren knows to be wrong; the message is meant for the person who started the job.

    The message is kept apart from `args`: Ray Data appends advice about its own retries to the `args` of an error.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.message = super().__str__()

    def __str__(self) -> str:
        return self.message


class ConfigError(WarrenError):
    """A recipe, an option or the environment is wrong."""


class StorageError(WarrenError):
    """Object storage or a disk did not do what was asked."""


class NotFoundError(StorageError):
    """No such object or file."""


class BucketNotFoundError(StorageError):
    """No such bucket. Not a `NotFoundError`: that may mean "not written yet", a missing bucket is always wrong."""


class AccessDeniedError(StorageError):
    """Credentials are missing, wrong or too weak."""


class ConflictError(StorageError):
    """A conditional write lost: the object exists already, or changed since it was read."""


class DataError(WarrenError):
    """A dataset or a sample is wrong."""


class BadSampleError(DataError):
    """One sample cannot be used; whoever reads it quarantines it."""


class SampleTooLongError(BadSampleError):
    """Nothing that can be trained on is left of a sample within `max_length_tokens`.

    Attributes:
        num_cut_tokens: Its supervised tokens, none of which is trained on.
    """

    num_cut_tokens = 0


class QuarantineError(DataError):
    """More samples were quarantined than the recipe allows."""


class EmptyDatasetError(DataError):
    """Nothing is left to train or evaluate on."""


class CorruptDataError(DataError):
    """Bytes differ from what the manifest promised."""


class UnsafePathError(CorruptDataError):
    """A manifest names a file outside its own folder; following it would read or write elsewhere."""


class ModelError(WarrenError):
    """A model folder cannot be read, converted or written."""


class TrainingError(WarrenError):
    """A run cannot start, go on or be resumed."""


class CheckpointError(TrainingError):
    """A checkpoint is incomplete or does not fit the run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint's files are not what its manifest promised; an older one may be whole."""


class ReleaseError(WarrenError):
    """A release is missing, broken or refused."""


class GateError(ReleaseError):
    """A release did not reach what its gate asks for."""


class ServiceError(WarrenError):
    """A service of the cluster (Ray, S3 server, Serve) did not start or answer."""


def root_cause(error: BaseException) -> BaseException:
    """Find the Warren error inside what Ray wrapped around it, or return the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, WarrenError):
            # A Ray task error is also an instance of its cause's class; the plain error is the readable one.
            return getattr(seen, "cause", None) or seen
        for failure in (getattr(seen, "worker_failures", None) or {}).values():
            if isinstance(cause := root_cause(failure), WarrenError):
                return cause
        seen = getattr(seen, "cause", None) or seen.__cause__ or seen.__context__
    return error
