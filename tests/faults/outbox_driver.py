"""A child program: couriers' lives on an outbox, each with a fault in it.

Versions are latencies: what is put last must be the newest that the log holds.
"""

import errno
import json
import sys
from functools import partial
from pathlib import Path

from tests.faults.log_driver import all_requests
from tests.faults.shim import Fault, Inside
from tests.warehouse.builders import sample, settings
from warehouse import sqlite_schema
from warehouse.backends import open_outbox
from warehouse.log import Failure, LogUnavailableError
from warehouse.sqlite_log import SqliteLog

ATTEMPTS_MAX = 3
LEASE_SECONDS = 60
ROUNDS_MAX = 50
CHECKPOINT_PAGES = 24


class Life:
    """A log, two couriers on it, and the bucket that they carry to."""

    def __init__(self, home, requests, set_clock):
        self.settings = settings(home, outbox_lease_seconds=LEASE_SECONDS)
        self.requests, self.set_clock = iter(requests[1:]), set_clock
        self.clock, self.felt = 0, []
        self.bucket, self.newest = {}, {}

    def insist(self, act):
        """Do as all do that use the log: what failed is done again."""
        for _ in range(ATTEMPTS_MAX):
            try:
                return act()
            except LogUnavailableError as error:
                self.felt.append(str(error))
        raise AssertionError(f"it never succeeded: {self.felt}")

    def submit(self, log, task, version):
        signed = next(self.requests)

        def append():
            said = [sample("a", task, latency_ms=version)]
            return log.append_samples(signed, said, None).result(60)

        self.insist(append)
        self.newest[task] = version

    def upload(self, log, claims):
        """Put what the claims name, as it is in the log."""
        for claim in claims:
            (one,) = self.insist(partial(log.submitted, claim.submission_seq)).samples
            self.bucket[claim.task_id] = one.latency_ms

    def wait(self, seconds):
        self.clock += seconds
        self.set_clock(self.clock)

    def live(self):
        log = self.insist(self.open_log)
        first, second = self.insist(self.open_courier), self.insist(self.open_courier)
        for task in (1, 2, 3):
            self.submit(log, task, 10 * task)
        claims = self.claimed(first)
        self.insist(lambda: first.renew(claims))
        # A newer one comes while the older is on its way.
        self.submit(log, 1, 11)
        self.upload(log, claims)
        ended = [claim for claim in claims if claim.task_id != 3]
        failed = [Failure(claim, "no room", 0.0) for claim in claims if claim.task_id == 3]
        self.insist(lambda: first.done(ended))
        self.insist(lambda: first.failed(failed))
        # One stops in mid-upload; another takes over, puts a newer one, and is done before it.
        slow = self.claimed(second)
        self.submit(log, 3, 31)
        self.wait(2 * LEASE_SECONDS)
        taken = self.claimed(first)
        self.upload(log, taken)
        self.insist(lambda: first.done(taken))
        self.upload(log, slow)
        self.insist(lambda: second.done(slow))
        given_back = self.claimed(first)
        self.insist(lambda: first.release(given_back))
        for one in (first, second):
            one.close()
        self.drain(log)
        log.close()

    def drain(self, log):
        courier = self.insist(self.open_courier)
        for _ in range(ROUNDS_MAX):
            if not self.insist(lambda: log.backlog(9)).depth:
                break
            claims = self.claimed(courier)
            self.upload(log, claims)
            self.insist(partial(courier.done, claims))
            # What was claimed and never heard of is due when its lease is over.
            self.wait(2 * LEASE_SECONDS)
        courier.close()

    def open_log(self):
        return SqliteLog(self.settings)

    def open_courier(self):
        return open_outbox(self.settings)

    def claimed(self, courier):
        return self.insist(lambda: courier.claim(9))


def main():
    task = json.loads(Path(sys.argv[1]).read_text())
    root, work = Path(task["root"]), Path(task["work"])
    sqlite_schema.WAL_CHECKPOINT_PAGES = CHECKPOINT_PAGES
    inside, requests, report = Inside(work), all_requests(work), []
    for number, case in enumerate(task["cases"]):
        home = root / f"case-{number}"
        home.mkdir()
        life, failure = Life(home, requests, inside.control.set_clock), None
        inside.control.plan(case and Fault(**{**case, "error": getattr(errno, case["error"])}))
        try:
            life.live()
        except Exception as error:  # noqa: BLE001  (the test tells it)
            failure = f"{type(error).__name__}: {error}"
        seen, hit = inside.control.seen, inside.control.hit
        inside.control.plan(None)
        inside.control.set_clock(0)
        report.append(
            {
                "seen": seen, "hit": hit, "felt": life.felt, "failure": failure,
                "put": life.bucket, "newest": life.newest,
            }
        )  # fmt: skip
    (work / "report.json").write_text(json.dumps({"cases": report}))


if __name__ == "__main__":
    main()
