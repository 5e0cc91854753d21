"""The one exception tree.

Every error carries a stable `code` (part of the public contract), a `retry` class that the pure retry rule reads, and a
`message` that is safe to show to a client and says what to change. Private detail stays in `__cause__` and the logs.
HTTP status codes are not here: `api.errors` maps codes to them in one table.

    BatchsightError
    ├── RequestError            the caller must change the request                          (permanent)
    │   ├── InvalidParameter    `param` names the field
    │   ├── UnknownKind, NotFound, Unauthenticated, Forbidden, Conflict
    │   ├── IdempotencyMismatch, IdempotencyInFlight
    │   ├── QuotaExceeded, RateLimited, RequestTooLarge, ExportForbidden
    │   └── JobNotCancellable, NothingToRedrive
    ├── MediaError              this medium cannot be used as it is                         (permanent)
    │   ├── MediaNotFound, MediaChanged, MediaTooLarge, UnsupportedMedia, CorruptMedia
    │   ├── EncryptedDocument, EmptyDocument, TooManyPages, SourceForbidden, SourceDisabled, BadFrameRange
    │   ├── DecodeTimedOut, DecoderCrashed, DecoderOutOfMemory
    │   └── SourceUnavailable   the source answered 5xx, timed out or broke off             (transient)
    ├── EngineError             the model cannot answer this request                        (permanent)
    │   └── see `pipelines.engine.errors`
    ├── ServiceUnavailable      a server of ours did not answer                             (transient)
    │   ├── StoreUnavailable, BlobStoreUnavailable, BrokerUnavailable
    │   └── ScratchFull
    ├── PackDamaged             a tile pack is missing or fails its checksum                (repair: prepare again)
    ├── WorkerOutOfMemory       MemoryError in a worker                                     (resource)
    ├── WorkerLost              the third lease of the item was lost                        (permanent)
    ├── DeadlineExceeded        the job's deadline passed before the item ran               (permanent)
    ├── InternalError           a defect of ours; the text never leaks                      (transient)
    └── ConfigurationError      a setting is missing or contradicts another                 (permanent)
"""

from __future__ import annotations

import enum
from typing import ClassVar


class RetryClass(enum.StrEnum):
    """How the retry rule treats a failure."""

    PERMANENT = "permanent"  # the same input fails again: fail at once
    TRANSIENT = "transient"  # somebody else's outage: try again later, with jitter, five times
    RESOURCE = "resource"  # out of memory: once more, in the suspect lane
    REPAIR = "repair"  # a derived artefact is gone: go back to `pending`, uncounted


class BatchsightError(Exception):
    """Root of the tree. `message` is public; put private detail in the cause."""

    code: ClassVar[str] = "internal_error"
    retry: ClassVar[RetryClass] = RetryClass.PERMANENT

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class RequestError(BatchsightError):
    """The caller must change the request."""

    code = "invalid_request"


class InvalidParameter(RequestError):
    """A field of the request is wrong; `param` names it."""

    code = "invalid_parameter"


class UnknownKind(RequestError):
    """No job kind has this name."""

    code = "unknown_kind"


class NotFound(RequestError):
    """Nothing of this id belongs to the caller's tenant."""

    code = "not_found"


class Unauthenticated(RequestError):
    """No API key, or one that is unknown, expired or revoked."""

    code = "unauthenticated"


class Forbidden(RequestError):
    """The key is valid but lacks the scope."""

    code = "forbidden"


class Conflict(RequestError):
    """The resource is in a state that does not allow this."""

    code = "conflict"


class JobNotCancellable(Conflict):
    """The job has already ended."""

    code = "job_not_cancellable"


class NothingToRedrive(Conflict):
    """The job has no failed item that matches."""

    code = "nothing_to_redrive"


class IdempotencyMismatch(RequestError):
    """The idempotency key was used before with another payload."""

    code = "idempotency_mismatch"


class IdempotencyInFlight(RequestError):
    """A request with this idempotency key is being handled right now."""

    code = "idempotency_in_flight"


class QuotaExceeded(RequestError):
    """A quota of the tenant is used up."""

    code = "quota_exceeded"


class ExportForbidden(RequestError):
    """The tenant may not write to this bucket or prefix."""

    code = "export_forbidden"


class RateLimited(RequestError):
    """Too many requests; `retry_after` is in seconds."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestTooLarge(RequestError):
    """The body or the number of items passes a limit."""

    code = "request_too_large"


class MediaError(BatchsightError):
    """This medium cannot be used as it is."""

    code = "bad_media"


class MediaNotFound(MediaError):
    """No object, file or page under this address."""

    code = "media_not_found"


class MediaChanged(MediaError):
    """The object is no longer the version that was planned."""

    code = "media_changed"


class MediaTooLarge(MediaError):
    """A size limit (bytes, pixels, seconds, frames) is passed."""

    code = "media_too_large"


class UnsupportedMedia(MediaError):
    """The bytes are of no type that this kind of job reads."""

    code = "unsupported_media"


class CorruptMedia(MediaError):
    """The bytes claim a type but do not decode."""

    code = "corrupt_media"


class EncryptedDocument(MediaError):
    """The PDF needs a password."""

    code = "encrypted_document"


class EmptyDocument(MediaError):
    """The document has no page, the video no frame."""

    code = "empty_document"


class TooManyPages(MediaError):
    """The document has more pages than the limit."""

    code = "too_many_pages"


class SourceForbidden(MediaError):
    """The bucket, prefix or address is not allowed for this tenant."""

    code = "source_forbidden"


class SourceDisabled(MediaError):
    """This kind of source is switched off on this installation."""

    code = "source_disabled"


class BadFrameRange(MediaError):
    """The bound lies outside of the video."""

    code = "bad_frame_range"


class DecodeTimedOut(MediaError):
    """The decoder did not finish in its time."""

    code = "decode_timed_out"


class DecoderCrashed(MediaError):
    """The decoder process died (signal) on these bytes."""

    code = "decoder_crashed"


class DecoderOutOfMemory(MediaError):
    """The decoder process passed its memory limit on these bytes."""

    code = "decoder_out_of_memory"


class SourceUnavailable(MediaError):
    """The source answered 5xx, timed out or broke off."""

    code = "source_unavailable"
    retry = RetryClass.TRANSIENT


class EngineError(BatchsightError):
    """The model cannot answer this request; the subclasses stand in `pipelines.engine.errors`."""

    code = "engine_error"


class ServiceUnavailable(BatchsightError):
    """A server of ours did not answer."""

    code = "service_unavailable"
    retry = RetryClass.TRANSIENT


class StoreUnavailable(ServiceUnavailable):
    """PostgreSQL did not answer."""

    code = "store_unavailable"


class BlobStoreUnavailable(ServiceUnavailable):
    """The blob store did not answer."""

    code = "blob_store_unavailable"


class BrokerUnavailable(ServiceUnavailable):
    """Redis did not answer."""

    code = "broker_unavailable"


class ScratchFull(ServiceUnavailable):
    """The worker's scratch disk is full."""

    code = "scratch_full"


class PackDamaged(BatchsightError):
    """A tile pack is missing or fails its checksum: the item is prepared again, uncounted."""

    code = "pack_damaged"
    retry = RetryClass.REPAIR


class WorkerOutOfMemory(BatchsightError):
    """A worker ran out of memory on this item."""

    code = "worker_out_of_memory"
    retry = RetryClass.RESOURCE


class WorkerLost(BatchsightError):
    """The item's worker died three times."""

    code = "worker_lost"


class DeadlineExceeded(BatchsightError):
    """The job's deadline passed before the item ran."""

    code = "deadline_exceeded"


class InternalError(BatchsightError):
    """A defect of ours; the text never leaks."""

    code = "internal_error"
    retry = RetryClass.TRANSIENT


class ConfigurationError(BatchsightError):
    """A setting is missing or contradicts another."""

    code = "configuration_error"
