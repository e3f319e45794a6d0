"""A child program: one service's life on a log, with a fault in it, as often as there are cases.

What was acknowledged goes into a ledger beside the disk at once, as a client would remember it.
"""

import contextlib
import errno
import json
import pickle
import sys
from functools import partial
from pathlib import Path

import apsw

from tests.faults.shim import Fault, Inside
from tests.warehouse.builders import request, sample, settings
from warehouse import sqlite_schema
from warehouse.files import locked_in_turn
from warehouse.log import LogUnavailableError, SignatureUsedError
from warehouse.sqlite_log import SqliteLog
from warehouse.sqlite_schema import lock_path

SIGNERS = ("one", "other")
SUBMISSIONS = 6
# Checkpoints come with every few commits instead of every 128 MiB.
CHECKPOINT_PAGES = 24
ATTEMPTS_MAX = 3
ANSWER_SECONDS_MAX = 60


class Client:
    """Sends signed requests and repeats the same one until it is acknowledged."""

    def __init__(self, home, ledger, inside, *, reads):
        self.settings, self.inside, self.reads = settings(home), inside, reads
        self.ledger = ledger
        self.outcomes = []

    def open(self):
        """Start the service; one that cannot start is started again."""
        tries = []
        for _ in range(ATTEMPTS_MAX):
            try:
                log = SqliteLog(self.settings)
            except LogUnavailableError:
                tries.append("unavailable")
            else:
                self.outcomes.append([*tries, "opened"])
                return log
        raise AssertionError(f"the log did not open: {tries}")

    def insist(self, *signed_and_sends):
        """Have requests acknowledged, each `(signed, send)`; all are sent before any is awaited."""
        tries = {signed.signature: [] for signed, _ in signed_and_sends}
        waiting = list(signed_and_sends)
        for _ in range(ATTEMPTS_MAX):
            # Of those that wait for the log's lock, all share the commit.
            with self.locked() if len(waiting) > 1 else contextlib.nullcontext():
                answers = [(signed, send, send()) for signed, send in waiting]
            waiting = [
                (signed, send)
                for signed, send, future in answers
                if not self.is_acknowledged(signed, future, tries[signed.signature])
            ]
            if not waiting:
                self.outcomes += tries.values()
                return
        raise AssertionError(f"never acknowledged: {[*tries.values()]}")

    def locked(self):
        return locked_in_turn(lock_path(self.settings.log_path), ANSWER_SECONDS_MAX)

    def is_acknowledged(self, signed, future, tries):
        told = {"signature": signed.signature.hex()}
        try:
            appended = future.result(ANSWER_SECONDS_MAX)
        except LogUnavailableError:
            tries.append("unavailable")
            return False
        except SignatureUsedError:
            # Of an admin's write this is how a repeat hears that the first one counted.
            tries.append("known")
        else:
            tries.append("known" if appended.is_replay else "stored")
            told |= {"seq": appended.submission_seq, "samples": appended.sample_count}
        line = json.dumps(told)
        self.ledger.write(line + "\n")
        self.ledger.flush()
        self.inside.mark(line)
        return True

    def live(self, requests, *, is_burst):
        """Start, take everything in, stop, start again, take one more in, stop."""
        announced, *submissions, last = requests
        log = self.open()
        self.insist((announced, lambda: log.announce_task(announced, 99)))
        sends = [
            (signed, partial(log.append_samples, signed, samples(number), None))
            for number, signed in enumerate(submissions)
        ]
        if is_burst:
            self.insist(*sends)
        else:
            for number, send in enumerate(sends):
                self.insist(send)
                if self.reads:
                    self.read(log, number)
        log.close()
        log = self.open()
        self.insist((last, lambda: log.append_samples(last, samples(len(submissions)), None)))
        log.close()

    @staticmethod
    def read(log, number):
        """What was acknowledged is seen by the next read, whatever the disk did."""
        try:
            newest = log.newest_samples(1)
        except LogUnavailableError:
            newest = log.newest_samples(1)
        assert newest[0].task_id == number, f"{newest} after submission {number}"


def somebody_else(home):
    """Open the log as another worker does that starts at the same moment, or a backup."""
    path = settings(home).log_path
    if not path.exists():
        return None
    connection = apsw.Connection(str(path))
    # The first to look recovers the WAL.
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    return connection


def samples(number):
    return [sample(miner, number, reasoning="Why? " * 300) for miner in ("a", "b")]


def all_requests(work):
    """One act of an admin and a few submissions; every case and every life sends the same ones."""
    kept = work / "requests"
    if kept.exists():
        return pickle.loads(kept.read_bytes())
    made = [
        request("admin", "announce"),
        *(request(SIGNERS[number % 2], number) for number in range(SUBMISSIONS + 1)),
    ]
    kept.write_bytes(pickle.dumps(made))
    return made


def main():
    task = json.loads(Path(sys.argv[1]).read_text())
    root, work = Path(task["root"]), Path(task["work"])
    sqlite_schema.WAL_CHECKPOINT_PAGES = CHECKPOINT_PAGES
    inside, requests = Inside(work), all_requests(work)
    if task.get("lie"):
        inside.control.lie_about_syncs()
    report = []
    for number, case in enumerate(task["cases"]):
        home = root / f"case-{number}"
        # Where the directory is there already, as with any service that was started before.
        (home / "log" if task.get("prepared") else home).mkdir(parents=True, exist_ok=True)
        fault = case and Fault(**{**case, "error": getattr(errno, case["error"])})
        with (
            (work / f"ledger-{number}").open("a") as ledger,
            inside.journal(work / f"journal-{number}" if task.get("journal") else "/dev/null"),
        ):
            companion = somebody_else(home) if task.get("has_companion") else None
            client = Client(home, ledger, inside, reads=task["reads"])
            inside.control.plan(fault)
            failure = None
            try:
                client.live(requests, is_burst=task.get("is_burst", False))
            except Exception as error:  # noqa: BLE001  (the test tells it)
                failure = f"{type(error).__name__}: {error}"
            seen, hit = inside.control.seen, inside.control.hit
            inside.control.plan(None)
            if companion is not None:
                companion.close()
        report.append({"seen": seen, "hit": hit, "outcomes": client.outcomes, "failure": failure})
    signatures = [signed.signature.hex() for signed in requests]
    (work / "report.json").write_text(json.dumps({"signatures": signatures, "cases": report}))


if __name__ == "__main__":
    main()
