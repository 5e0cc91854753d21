"""What the api counts; each application has a registry of its own, so that several can live in one process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The api's own metrics."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "batchsight_api_requests", "Requests", ["method", "route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "batchsight_api_request_seconds",
            "Time to answer",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.submitted = Counter("batchsight_api_jobs_submitted", "Accepted jobs", ["kind"], registry=self._registry)
        self.hints_lost = Counter(
            "batchsight_api_hints_lost", "Messages that Redis did not take", registry=self._registry
        )
        self.limiter_fallbacks = Counter(
            "batchsight_api_rate_limit_fallbacks", "Requests limited in memory, Redis away", registry=self._registry
        )
        self.waiting = Gauge("batchsight_api_long_polls", "Requests that wait for a job", registry=self._registry)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)
