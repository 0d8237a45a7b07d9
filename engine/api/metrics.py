"""What the server counts, in Prometheus' format. A registry of its own, so that several servers can live in one process."""
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10)
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 5)


class Metrics:
    """The figures, and `text()` to read them all. service: whose worker is counted at the moment of reading."""

    def __init__(self, service):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry, "namespace": "minimind"}
        self.calls = Gauge("realtime_sessions", "Realtime sessions that are open", **own)
        Gauge("speaking", "Replies that are being generated", **own).set_function(lambda: len(service.worker.jobs))
        Gauge("queue", "Replies that wait for a free row", **own).set_function(lambda: len(service.worker.waiting))
        self.ttfa = Histogram("ttfa_seconds", "From a request to the first sound of its reply", buckets=SECONDS, **own)
        self.ttft = Histogram("ttft_seconds", "From a request to the first text of its reply", buckets=SECONDS, **own)
        self.rtf = Histogram("rtf", "Seconds of waiting per second of speech", buckets=RATIOS, **own)
        self.replies = Counter("replies", "Replies by the way they ended", ["finish"], **own)
        self.errors = Counter("errors", "Errors that clients were told of", ["code"], **own)

    def text(self) -> bytes:
        return generate_latest(self.registry)
