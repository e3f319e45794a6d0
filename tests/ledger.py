"""Validators that keep a ledger of what they were answered, and what it is compared with.

Whatever is killed: what was answered 200 is in the log, once, under the id that was answered; and
the pointer names a whole generation that is no older than any before.
"""

import contextlib
import json
import threading
import time
from collections import Counter

import httpx

from api.client import RETRIED_STATUSES
from tests.builders import hotkey, sample_body, signed_headers
from tests.faults.test_publish_faults import wrong_with
from warehouse.generation import Generations
from warehouse.sqlite_keeper import SqliteKeeper

# A signature is good for 300 seconds before and after its stamp: for 540 where it is stamped ahead.
AHEAD_SECONDS = 240
GIVE_UP_SECONDS = 500
REPEAT_SECONDS = 0.02
TASKS = 150  # they come round again, so that versions are superseded; two partitions


def tell(record_property, **figures):
    """Have the figures of a test told at the end of the run."""
    for name, value in figures.items():
        record_property(name, value)


class Validator:
    """Submits batch after batch; repeats the same signed bytes until they are answered.

    With a `series` its samples belong to no task, so that they change nobody's rank.
    """

    def __init__(self, name, url, *, batch=20, series=""):
        self.name, self.url = name, url
        self.batch, self.series = batch, series
        self.ledger = {}
        self.requests = self.repeated = 0
        self.patience_seconds = GIVE_UP_SECONDS
        self._http = httpx.Client(trust_env=False, timeout=10)

    def submit(self):
        """Submit one batch, and enter what was answered."""
        self.requests += 1
        number = self.requests
        task = {"sample_id": f"{self.series}{number}", "task_id": ...}
        samples = [
            # No two requests say the same: so that a sample that is stored twice is noticed.
            sample_body(
                **(task if self.series else {"task_id": number % TASKS}),
                miner_hotkey=hotkey(f"m{miner}"),
                latency_ms=number,
                passed=number % 3 > 0,
            )
            for miner in range(self.batch)
        ]
        body = json.dumps({"samples": samples}).encode()
        answer = self._insist(body)
        assert answer.status_code == 200, answer.text
        rows = {row["id"]: (row["latency_ms"], row["miner_hotkey"]) for row in answer.json()}
        assert len(rows) == self.batch
        self.ledger |= rows

    def _insist(self, body):
        begun, attempts = time.monotonic(), 0
        stamp = str(int(time.time()) + AHEAD_SECONDS)
        headers = signed_headers(
            self.name, body, method="POST", path="/samples/batch", scheme=2, timestamp=stamp
        )
        while True:
            with contextlib.suppress(httpx.TransportError):
                # The address may change while it is down.
                url = f"{self.url}/samples/batch"
                answer = self._http.post(url, content=body, headers=headers)
                if answer.status_code not in RETRIED_STATUSES:
                    return answer
            assert time.monotonic() - begun < self.patience_seconds, "the API did not come back"
            attempts += 1
            self.repeated += attempts == 1
            time.sleep(REPEAT_SECONDS)

    def close(self):
        self._http.close()


class Crowd:
    """Validators that all submit at the same time for as long as the block lasts.

    Leaving it waits until the last requests are answered, so the API must be there then.
    """

    def __init__(self, validators, pause_seconds=0):
        self._stop = threading.Event()
        self._go = threading.Event()
        self._answers = threading.Semaphore(0)
        self._validators, self._pause_seconds = validators, pause_seconds
        # Each is held while a validator has a request under way.
        self._under_way = [threading.Lock() for _ in validators]
        self._threads = [
            threading.Thread(target=self._go_on, args=one)
            for one in zip(validators, self._under_way, strict=True)
        ]

    def _go_on(self, validator, under_way):
        while not self._stop.wait(self._pause_seconds):
            self._go.wait()
            with under_way:
                validator.submit()
            self._answers.release()
        validator.close()

    @contextlib.contextmanager
    def paused(self):
        """Have nobody begin a request inside the block, which begins when all are answered.

        Else the log would grow while it is looked at, and the looks would take ever longer.
        """
        self._go.clear()
        try:
            with contextlib.ExitStack() as stack:
                for lock in self._under_way:
                    stack.enter_context(lock)
                yield
        finally:
            self._go.set()

    def __enter__(self):
        self._go.set()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, error_type, *_):
        self._stop.set()
        if error_type:
            # It may never come back.
            for validator in self._validators:
                validator.patience_seconds = 0
        for thread in self._threads:
            thread.join()

    def wait_for(self, answers):
        """Wait until so many requests are answered from now on."""
        while self._answers.acquire(blocking=False):
            pass
        for _ in range(answers):
            assert self._answers.acquire(timeout=GIVE_UP_SECONDS), "no answers any more"


class Audit:
    """The validators' ledgers and the log, compared again and again."""

    def __init__(self, settings, validators):
        self.settings, self.validators = settings, validators
        self.stored = {}
        self.compared = 0

    def look(self, *, are_all_answered=False):
        """Compare, also while validators go on.

        All that was answered is stored as answered; what else is stored is whole requests that are
        on their way; and what was there at the last look still is.
        """
        promised = self._promised()
        stored = self._stored()
        wrong = {seq: row for seq, row in promised.items() if stored.get(seq) != row}
        assert not wrong, f"answered, but not stored so: {wrong}"
        assert self.stored.items() <= stored.items(), "what was stored is gone"
        assert len(set(stored.values())) == len(stored), "stored twice"
        unanswered = Counter(row[:2] for seq, row in stored.items() if seq not in promised)
        batches = {hotkey(validator.name): validator.batch for validator in self.validators}
        torn = {key: count for key, count in unanswered.items() if count != batches[key[0]]}
        assert not torn, f"stored in part: {torn}"
        assert not (are_all_answered and unanswered), f"stored, but not answered: {unanswered}"
        self.stored = stored
        self.compared += len(promised)

    def close(self):
        """Compare when all is answered: then the log holds exactly what the ledgers say."""
        self.look(are_all_answered=True)
        assert self.stored, "nothing was stored"

    def figures(self):
        """Return what a test tells of itself."""
        return {
            "samples acknowledged": len(self.stored),
            "comparisons of a sample": self.compared,
            "requests repeated": sum(validator.repeated for validator in self.validators),
        }

    def _promised(self):
        return {
            seq: (hotkey(validator.name), *row)
            for validator in self.validators
            for seq, row in validator.ledger.copy().items()
        }

    def _stored(self):
        if not self.settings.log_path.exists():
            return {}
        series = {hotkey(validator.name): validator.series for validator in self.validators}
        log = SqliteKeeper(self.settings)
        try:
            problems = log.check()
            assert not problems, problems
            return {
                row.seq: (row.validator_hotkey, row.latency_ms, row.miner_hotkey)
                for votes in log.votes_between(0, log.head())
                for row in votes.rows()
                # Others submit to the demo as well, for the same validators too.
                if row.validator_hotkey in series
                and row.task_key.startswith(series[row.validator_hotkey])
            }
        finally:
            log.close()


class Publications:
    """What the pointer named, look after look."""

    def __init__(self, settings):
        self.generations = Generations(settings)
        self.made_from = (0, 0)

    def look(self):
        """See that the current generation is whole and agrees with the log as of its watermark.

        A run may be under way meanwhile. Return the current generation's watermark.
        """
        home, name = self.generations.settings.leoma_home, ...
        while name != self._name():
            name = self._name()
            # The link for analysts lags where a run was killed just after the pointer's rename.
            links = {None, *(one.snapshot_id for one in self.generations.kept())}
            wrong = wrong_with(home, {name}, links)
        assert wrong is None, wrong
        return self.watermark()

    def watermark(self):
        """Return the current generation's watermark; see that the pointer has not gone back."""
        made_from = self.generations.made_from() or (0, 0)
        went_back = [now < before for now, before in zip(made_from, self.made_from, strict=True)]
        assert not any(went_back), f"from {self.made_from} back to {made_from}"
        self.made_from = made_from
        return made_from[0]

    def _name(self):
        current = self.generations.current()
        return current and current.snapshot_id
