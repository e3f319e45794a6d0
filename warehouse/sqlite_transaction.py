"""The writes of one commit of the SQLite log: which seqs they get, and which are refused.

`sqlite_log` decides what goes into a commit and makes it durable.
"""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import apsw

from warehouse.log import (
    AdminStateChangedError,
    NotBlacklistedError,
    RefusedError,
    SignatureUsedError,
    TaskGoesBackwardsError,
    TaskNotAnnouncedError,
)
from warehouse.records import (
    BLACKLIST_REMOVED,
    TASK_ANNOUNCED,
    Appended,
    Evaluation,
    Event,
    Sample,
    SignedRequest,
    admin_state,
)
from warehouse.sqlite_questions import EVENTS, HEAD
from warehouse.sqlite_schema import LogDamagedError

# Samples may be about any hotkey that somebody makes up.
HOTKEYS_KEPT_MAX = 16_384
# A signature lives twice SIGNATURE_EXPIRY_SECONDS; a day leaves room for any clock set back.
SPENT_SIGNATURES_KEPT_MS = 86_400_000

# The submission that used it; seq 0, which no record has, for one that nothing may use.
FIND_SIGNATURE = """
    SELECT seq, sample_count, received_at_ms, method, path FROM submissions WHERE signature = ?1
    UNION ALL SELECT 0, 0, 0, '', '' FROM spent_signatures WHERE signature = ?1
    LIMIT 1
"""
LATEST_EVENTS = """
    SELECT coalesce(max(seq), 0),
           (SELECT subject FROM events WHERE kind = ? ORDER BY seq DESC LIMIT 1)
    FROM events
"""
SPEND = "INSERT INTO spent_signatures VALUES (?, ?) ON CONFLICT DO NOTHING"
FORGET_SPENT = "DELETE FROM spent_signatures WHERE spent_at_ms < ?"
INSERT_SUBMISSION = "INSERT INTO submissions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
FIND_HOTKEY = "SELECT id FROM hotkeys WHERE hotkey = ?"
INSERT_HOTKEY = "INSERT INTO hotkeys SELECT coalesce(max(id), 0) + 1, ? FROM hotkeys RETURNING id"
# The more, the cheaper each; and every question about a hotkey reads them all, 20 a microsecond.
UNFILED_SEQS_MAX = 4_096
FILED_THROUGH = "SELECT filed_through FROM filing"
FILE = """
    INSERT INTO samples_by_validator SELECT validator_id, seq FROM samples WHERE seq > :after
    ORDER BY validator_id, seq;
    INSERT INTO samples_by_miner SELECT miner_id, seq FROM samples WHERE seq > :after
    ORDER BY miner_id, seq;
    UPDATE filing SET filed_through = :through;
"""
# Samples go in through a view of this connection's own, both parts of one at once, and many a
# statement: after each statement the thread waits for the interpreter, and with it everybody who
# waits for the log's lock.
SAMPLE_COLUMNS = (
    "seq", "submission_seq", "received_at_ms", "validator_id", "miner_id", "task", "passed",
    "confidence", "latency_ms",
)  # fmt: skip
TEXT_COLUMNS = (
    "sample_id", "prompt", "s3_bucket", "s3_prefix", "reasoning", "original_artifacts",
    "generated_artifacts", "presentation_order", "evaluation_signature",
)  # fmt: skip
APPENDED = f"""
    PRAGMA temp_store = memory;
    CREATE TEMP VIEW appended AS
    SELECT {", ".join(f"NULL AS {name}" for name in (*SAMPLE_COLUMNS, *TEXT_COLUMNS))};
    CREATE TEMP TRIGGER appended_sample INSTEAD OF INSERT ON appended BEGIN
        INSERT INTO samples VALUES ({", ".join(f"NEW.{name}" for name in SAMPLE_COLUMNS)});
        INSERT INTO sample_texts VALUES (
            NEW.seq, {", ".join(f"NEW.{name}" for name in TEXT_COLUMNS)}
        );
    END;
"""
SAMPLES_A_STATEMENT = 25
ONE_ROW = f"({', '.join('?' * len(SAMPLE_COLUMNS + TEXT_COLUMNS))})"
APPEND_SAMPLE = f"INSERT INTO appended VALUES {ONE_ROW}"
APPEND_SAMPLES = f"INSERT INTO appended VALUES {', '.join([ONE_ROW] * SAMPLES_A_STATEMENT)}"
INSERT_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)"
# A newer submission leaves all else as it is: since when the result waits, who has it in flight.
QUEUE_RESULT = """
    INSERT INTO outbox (task_id, validator_hotkey, submission_seq, queued_at_ms, due_at_ms)
    VALUES (?1, ?2, ?3, ?4, ?4)
    ON CONFLICT DO UPDATE SET submission_seq = excluded.submission_seq
"""


class Transaction:
    """The writes of one group: hands out seqs, and knows which signatures were used.

    Every statement makes the thread wait for the interpreter, so what cannot have changed is not
    asked again: the latest events within one transaction, and the ids of hotkeys in all of them.
    `hotkey_ids` is kept between the transactions of a connection and emptied when one fails.
    """

    def __init__(self, connection: apsw.Connection, hotkey_ids: dict[str, int]) -> None:
        self.connection = connection
        self._hotkey_ids = hotkey_ids
        # The seq of the newest event, and the latest task.
        self._latest: tuple[int, int | None] | None = None
        self.seq = self._ask(HEAD, ())[0][0]
        if type(self.seq) is not int:
            raise LogDamagedError("its end is missing")
        self._head = self.seq
        self.now_ms = time.time_ns() // 1_000_000

    def append_samples(
        self,
        request: SignedRequest,
        packed_body: bytes,
        samples: Sequence[Sample],
        evaluation: Evaluation | None,
        admin_seq: int | None = None,
    ) -> Appended:
        """Store a submission of samples, or describe the one that used its signature."""
        newest_event, latest = self._latest_events()
        if admin_seq is not None and admin_seq != newest_event:
            raise AdminStateChangedError("an admin has acted since")
        earlier, is_used = self._use_of(request.signature)
        if earlier is not None:
            return earlier
        highest = max((s.task_id for s in samples if s.task_id is not None), default=None)
        if latest is not None and highest is not None and highest > latest:
            self.spend(request.signature)
            raise TaskNotAnnouncedError(
                f"task_id {highest} is above the latest announced task {latest}"
            )
        if is_used:
            raise SignatureUsedError("the signature was already used for another request")
        appended = self._submission(request, packed_body, len(samples), evaluation)
        first_seq = self.seq + 1
        self.seq += len(samples)
        validator_id = self._hotkey_id(request.hotkey)
        miner_ids = {
            hotkey: self._hotkey_id(hotkey) for hotkey in {s.miner_hotkey for s in samples}
        }
        self._insert(
            [
                (
                    seq, appended.submission_seq, self.now_ms, validator_id,
                    miner_ids[sample.miner_hotkey],
                    sample.task_key if sample.task_id is None else sample.task_id,
                    sample.passed, sample.confidence, sample.latency_ms, sample.sample_id,
                    sample.prompt, sample.s3_bucket, sample.s3_prefix, sample.reasoning,
                    sample.original_artifacts, sample.generated_artifacts,
                    sample.presentation_order, sample.evaluation_signature,
                )
                for seq, sample in enumerate(samples, first_seq)
            ]
        )  # fmt: skip
        for task_id in {sample.task_id for sample in samples if sample.task_id is not None}:
            self.connection.execute(
                QUEUE_RESULT, (task_id, request.hotkey, appended.submission_seq, self.now_ms)
            )
        return appended

    def append_event(
        self,
        request: SignedRequest,
        packed_body: bytes,
        kind: str,
        subject: str,
        detail: str | None,
    ) -> Appended:
        """Store an admin's act. A refused one uses up its signature: what is refused now must not
        be replayed when it would be accepted.
        """
        _, is_used = self._use_of(request.signature)
        if is_used:
            raise SignatureUsedError("the signature was already used")
        try:
            self._check_event(kind, subject)
        except RefusedError:
            self.spend(request.signature)
            raise
        appended = self._submission(request, packed_body, 0, None)
        self._latest = None
        self.seq += 1
        self.connection.execute(
            INSERT_EVENT, (self.seq, self.now_ms, kind, subject, detail, request.hotkey)
        )
        return appended

    def spend(self, signature: bytes, good_at_ms: int = 0) -> None:
        """Make sure that no write accepts this signature, now or around `good_at_ms`."""
        self.connection.execute(FORGET_SPENT, (self.now_ms - SPENT_SIGNATURES_KEPT_MS,))
        self.connection.execute(SPEND, (signature, max(self.now_ms, good_at_ms)))

    def file(self) -> None:
        """File samples by their hotkeys, once there are enough of them."""
        if self.seq == self._head:
            return
        rows = self._ask(FILED_THROUGH, ())
        if len(rows) != 1 or type(rows[0][0]) is not int or not 0 <= rows[0][0] <= self.seq:
            raise LogDamagedError("nothing says how far samples are filed")
        filed_through = rows[0][0]
        if self.seq - filed_through >= UNFILED_SEQS_MAX:
            try:
                self.connection.execute(FILE, {"after": filed_through, "through": self.seq})
            except apsw.ConstraintError as error:
                raise LogDamagedError("samples are filed that come after those") from error

    def _insert(self, rows: Sequence[tuple[Any, ...]]) -> None:
        alone = len(rows) % SAMPLES_A_STATEMENT
        for row in rows[:alone]:
            self.connection.execute(APPEND_SAMPLE, row)
        for start in range(alone, len(rows), SAMPLES_A_STATEMENT):
            together = rows[start : start + SAMPLES_A_STATEMENT]
            self.connection.execute(APPEND_SAMPLES, tuple(itertools.chain.from_iterable(together)))

    def _latest_events(self) -> tuple[int, int | None]:
        if self._latest is None:
            ((newest, task),) = self._ask(LATEST_EVENTS, (TASK_ANNOUNCED,))
            self._latest = newest, None if task is None else int(task)
        return self._latest

    def _check_event(self, kind: str, subject: str) -> None:
        state = admin_state([Event._make(row) for row in self._ask(EVENTS, (0, self.seq))])
        if kind == TASK_ANNOUNCED:
            if state.latest_task_id is not None and int(subject) < state.latest_task_id:
                raise TaskGoesBackwardsError(state.latest_task_id)
        elif kind == BLACKLIST_REMOVED and subject not in state.blacklist:
            raise NotBlacklistedError(f"{subject} is not on the blacklist")

    def _submission(
        self,
        request: SignedRequest,
        packed_body: bytes,
        sample_count: int,
        evaluation: Evaluation | None,
    ) -> Appended:
        self.seq += 1
        self.connection.execute(
            INSERT_SUBMISSION,
            (
                self.seq, self.now_ms, request.hotkey, request.scheme, request.timestamp,
                request.nonce, request.method, request.path, request.signature, packed_body,
                sample_count, evaluation.signature if evaluation else None,
                evaluation.is_verified if evaluation else None,
            ),
        )  # fmt: skip
        return Appended(
            self.seq, sample_count, self.now_ms, request.method, request.path, is_replay=False
        )

    def _use_of(self, signature: bytes) -> tuple[Appended | None, bool]:
        """Return the submission that used a signature, and whether anything has used it up."""
        rows = self._ask(FIND_SIGNATURE, (signature,))
        if not rows:
            return None, False
        return (Appended._make((*rows[0], True)) if rows[0][0] else None), True

    def _hotkey_id(self, hotkey: str) -> int:
        found = self._hotkey_ids.get(hotkey)
        if found is None:
            rows = self._ask(FIND_HOTKEY, (hotkey,)) or self._ask(INSERT_HOTKEY, (hotkey,))
            if len(self._hotkey_ids) >= HOTKEYS_KEPT_MAX:
                self._hotkey_ids.clear()
            found = self._hotkey_ids[hotkey] = int(rows[0][0])
        return found

    def _ask(self, sql: str, bindings: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, bindings).fetchall()
