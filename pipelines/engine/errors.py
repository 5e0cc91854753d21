"""What the engine may refuse, under `pipelines.jobs.errors.EngineError`. Free of torch.

EngineError
├── BadRequest            the request contradicts itself (images against tiles, ids out of range)   (permanent)
├── EmptyPrompt           neither text nor pixels                                                  (permanent)
├── PromptTooLong         more tokens than the context, or than the cache can ever hold            (permanent)
├── UnknownOption         a generation option that does not exist                                  (permanent)
├── NonFiniteLogits       the model computed NaN or infinity for this request                      (permanent)
├── RequestCancelled      the caller cancelled, or vanished                                        (permanent)
├── EngineOutOfMemory     the device ran out of memory on this request                             (resource)
├── EngineStopped         the engine shuts down or died; the request was not answered              (transient)
├── RemoteRefused         the remote server refused the request (4xx)                              (permanent)
├── RemoteUnavailable     the remote server failed, timed out or asked to wait                     (transient)
└── CheckpointError       the checkpoint cannot be loaded as it is                                 (permanent)
"""

from __future__ import annotations

from pipelines.jobs.errors import EngineError, RetryClass


class BadRequest(EngineError):
    """The request contradicts itself."""

    code = "engine_bad_request"


class EmptyPrompt(EngineError):
    """Neither text nor pixels were given."""

    code = "empty_prompt"


class PromptTooLong(EngineError):
    """The prompt plus the requested answer is longer than the context or the cache can ever hold."""

    code = "prompt_too_long"


class UnknownOption(EngineError):
    """A generation option that does not exist."""

    code = "unknown_option"


class NonFiniteLogits(EngineError):
    """The model computed NaN or infinity for this request."""

    code = "non_finite_logits"


class RequestCancelled(EngineError):
    """The caller cancelled the request, or vanished."""

    code = "request_cancelled"


class EngineOutOfMemory(EngineError):
    """The device ran out of memory on this request."""

    code = "engine_out_of_memory"
    retry = RetryClass.RESOURCE


class EngineStopped(EngineError):
    """The engine shuts down or died; the request was not answered."""

    code = "engine_stopped"
    retry = RetryClass.TRANSIENT


class RemoteRefused(EngineError):
    """The remote server refused the request."""

    code = "remote_refused"


class RemoteUnavailable(EngineError):
    """The remote server failed, timed out or asked to wait (`retry_after` seconds, when it said so)."""

    code = "remote_unavailable"
    retry = RetryClass.TRANSIENT

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class CheckpointError(EngineError):
    """The checkpoint cannot be loaded as it is; the message names the tensor or the setting."""

    code = "bad_checkpoint"
