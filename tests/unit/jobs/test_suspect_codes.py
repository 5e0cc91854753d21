from __future__ import annotations

from pipelines.engine import errors as engine_errors
from pipelines.jobs.errors import BatchsightError, RetryClass
from pipelines.store.completions import SUSPECT_CODES


def every(error: type[BatchsightError]) -> set[type[BatchsightError]]:
    return {error}.union(*(every(each) for each in error.__subclasses__()))


def test_the_suspect_lane_knows_every_code_of_the_retry_class_resource() -> None:
    assert issubclass(engine_errors.EngineOutOfMemory, BatchsightError)  # the engine's part of the tree is loaded
    assert {error.code for error in every(BatchsightError) if error.retry is RetryClass.RESOURCE} == SUSPECT_CODES
