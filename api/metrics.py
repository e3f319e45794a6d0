"""What a worker counts for those who watch it. `cli.exporter` shows the sums of all workers.

prometheus_client keeps the numbers in files where PROMETHEUS_MULTIPROC_DIR is set before it is
imported (`leoma serve` does), else in memory.
"""

from prometheus_client import CollectorRegistry, Counter, Histogram

REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COMMIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
GROUP_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

COUNTED_TOGETHER = 64


class Metrics:
    """The counters of one worker. Made once a process; two of one process count apart."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Histogram(
            "leoma_http_request_seconds",
            "Requests by route, method and status, and how long they took.",
            ["route", "method", "status"],
            buckets=REQUEST_SECONDS,
            registry=registry,
        )
        self.samples = Counter(
            "leoma_samples_stored", "Samples stored durably, replays aside.", registry=registry
        )
        self.commits = Histogram(
            "leoma_log_commit_seconds",
            "Commits of the log, from taking its lock to the end of fsync.",
            buckets=COMMIT_SECONDS,
            registry=registry,
        )
        self.groups = Histogram(
            "leoma_log_commit_submissions",
            "Submissions that one commit took.",
            buckets=GROUP_SIZES,
            registry=registry,
        )
        self.auth_failures = Counter(
            "leoma_auth_failures", "Requests refused with 401, by why.", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.rate_limited = Counter(
            "leoma_rate_limited", "Requests refused with 429, by whose rate it was.", ["by"],
            registry=registry,
        )  # fmt: skip

        self._waiting: list[tuple[tuple[str, str, str], float]] = []
        self._by_labels: dict[tuple[str, str, str], Histogram] = {}

    def request(self, route: str, method: str, status: str, seconds: float) -> None:
        """Count a request, at the latest when `settle` is called. Of one thread.

        Some are counted together: one by one, between other work, each takes three times as long.
        """
        self._waiting.append(((route, method, status), seconds))
        if len(self._waiting) >= COUNTED_TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Count what waits. Labels are of a few values each, so what they name is kept."""
        waiting, self._waiting = self._waiting, []
        for labels, seconds in waiting:
            found = self._by_labels.get(labels)
            if found is None:
                found = self._by_labels[labels] = self.requests.labels(*labels)
            found.observe(seconds)

    def commit(self, submissions: int, seconds: float) -> None:
        """Count a commit of the log."""
        self.commits.observe(seconds)
        self.groups.observe(submissions)
