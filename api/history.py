"""Samples as readers see them: the log's, and from the archive what retention took out of the log.

While nothing was ever dropped this is the log alone. After that a question goes to the archive only
when the log cannot have the whole answer: Parquet takes tens of milliseconds where the log takes
less than one.
"""

import logging
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import duckdb

from api.snapshot import Snapshots
from warehouse.archive_views import archived_rows
from warehouse.log import LogReader, LogUnavailableError, VoteRow
from warehouse.records import StoredSample
from warehouse.tables import ARCHIVED_TEXTS, ARCHIVED_VOTES

# {votes} and {texts}: the files as they are on this machine. The views in a generation name them
# as they were where it was made.
SEQS_OF = """
    SELECT seq FROM ({votes})
    WHERE seq <= $dropped_through
        AND ($task_key IS NULL OR task_key = $task_key)
        AND ($validator_hotkey IS NULL OR validator_hotkey = $validator_hotkey)
        AND ($miner_hotkey IS NULL OR miner_hotkey = $miner_hotkey)
    ORDER BY seq DESC LIMIT $rows_max
"""
# Both sides by seq: the texts are wide, and a join would read all of them.
SAMPLES_BY_SEQ = """
    SELECT v.seq, v.received_at_ms, v.validator_hotkey, v.miner_hotkey, v.task_id, t.sample_id,
        v.is_passed, v.confidence, v.latency_ms, t.prompt, t.s3_bucket, t.s3_prefix, t.reasoning,
        t.generated_artifacts
    FROM (FROM ({votes}) WHERE seq IN (SELECT unnest($seqs))) AS v
    JOIN (FROM ({texts}) WHERE seq IN (SELECT unnest($seqs))) AS t USING (seq)
    ORDER BY v.seq DESC
"""
VOTES_OF_TASK = """
    SELECT seq, received_at_ms, validator_hotkey, miner_hotkey, task_id, task_key, is_passed,
        confidence, latency_ms
    FROM ({votes}) WHERE seq <= $dropped_through AND task_key = $task_key
    ORDER BY seq DESC LIMIT $rows_max
"""
PROMPT = "SELECT prompt FROM ({texts}) WHERE seq = $seq"
# 256 validators about 256 miners. A validator may make miners up; what is beyond is not shown.
TASK_ROWS_MAX = 65_536

logger = logging.getLogger(__name__)


class ArchiveNeededError(Exception):
    """What is asked has left the log, or a part of it: the archive is to be asked as well."""


class History:
    """Answers the questions about samples; every method raises `LogError` when it cannot.

    Without the archive it raises `ArchiveNeededError` where the log cannot have the whole answer.
    """

    def __init__(self, log: LogReader, snapshots: Snapshots, *, has_archive: bool) -> None:
        self._log = log
        self._snapshots = snapshots
        self._has_archive = has_archive

    def as_json(
        self,
        limit: int,
        *,
        validator_hotkey: str | None = None,
        miner_hotkey: str | None = None,
    ) -> bytes | None:
        """Return the newest current samples, of one validator or about one miner if given, as JSON;
        None where the archive is there to be asked as well.
        """
        if self._has_archive:
            return None
        found = self._log.samples_as_json(
            limit, validator_hotkey=validator_hotkey, miner_hotkey=miner_hotkey
        )
        if found.sample_count < limit and self._log.dropped_through():
            raise ArchiveNeededError
        return found.json

    def newest_samples(self, limit: int) -> list[StoredSample]:
        """Return current samples, newest first."""
        return self._filled_up(self._log.newest_samples(limit), limit)

    def samples_of_validator(self, validator_hotkey: str, limit: int) -> list[StoredSample]:
        """Return one validator's current samples, newest first."""
        recent = self._log.samples_of_validator(validator_hotkey, limit)
        return self._filled_up(recent, limit, validator_hotkey=validator_hotkey)

    def samples_of_miner(self, miner_hotkey: str, limit: int) -> list[StoredSample]:
        """Return the current samples about one miner, newest first."""
        recent = self._log.samples_of_miner(miner_hotkey, limit)
        return self._filled_up(recent, limit, miner_hotkey=miner_hotkey)

    def samples_of_task(
        self,
        task_key: str,
        *,
        validator_hotkey: str | None = None,
        miner_hotkey: str | None = None,
    ) -> list[StoredSample]:
        """Return a task's current samples by (miner, validator), of one of them if given."""
        whose = {"validator_hotkey": validator_hotkey, "miner_hotkey": miner_hotkey}
        recent = self._log.samples_of_task(task_key, TASK_ROWS_MAX, **whose)
        found = self._filled_up(recent, TASK_ROWS_MAX, task_key=task_key, **whose)
        return sorted(found, key=lambda sample: (sample.miner_hotkey, sample.validator_hotkey))

    def votes_of_task(self, task_key: str) -> list[VoteRow]:
        """Return the narrow part of a task's current samples by (miner, validator)."""
        found = self._log.votes_of_task(task_key, TASK_ROWS_MAX)
        dropped_through = self._log.dropped_through()
        if dropped_through and len(found) < TASK_ROWS_MAX:
            newer = {(vote.validator_hotkey, vote.miner_hotkey) for vote in found}
            bindings = {"task_key": task_key, "dropped_through": dropped_through}
            rows = self._asked(VOTES_OF_TASK, {**bindings, "rows_max": TASK_ROWS_MAX})
            archived = map(VoteRow._make, rows)
            found += [
                one for one in archived if (one.validator_hotkey, one.miner_hotkey) not in newer
            ]
        if len(found) >= TASK_ROWS_MAX:
            logger.warning(
                "task %s has %d samples or more: not all are shown", task_key, len(found)
            )
        return sorted(found, key=attrgetter("miner_hotkey", "validator_hotkey"))[:TASK_ROWS_MAX]

    def prompt(self, seq: int) -> str | None:
        """Return the prompt of one sample, None where nobody has it (any more)."""
        for chunk in self._log.texts_between(seq - 1, seq):
            return chunk[0].prompt
        rows = self._asked(PROMPT, {"seq": seq})
        return str(rows[0][0]) if rows else None

    def _filled_up(
        self, recent: list[StoredSample], limit: int, **asked: str | None
    ) -> list[StoredSample]:
        """Add what the archive holds to what the log holds, newest first, `limit` at most."""
        # Asked for after the log was read: what is dropped in between is found twice, not never.
        dropped_through = self._log.dropped_through()
        if not dropped_through or len(recent) >= limit:
            return recent
        # `recent` is all that the log has, newer versions of archived samples included.
        newer = {_version(sample) for sample in recent}
        archived = self._archived(dropped_through, limit + len(recent), asked)
        kept = [sample for sample in archived if _version(sample) not in newer]
        return (recent + kept)[:limit]

    def _archived(
        self, dropped_through: int, rows_max: int, asked: dict[str, str | None]
    ) -> list[StoredSample]:
        columns = ("task_key", "validator_hotkey", "miner_hotkey")
        bindings = {name: asked.get(name) for name in columns}
        limits = {"dropped_through": dropped_through, "rows_max": rows_max}
        found = self._asked(SEQS_OF, bindings | limits)
        if not found:
            return []
        rows = self._asked(SAMPLES_BY_SEQ, {"seqs": [seq for (seq,) in found]})
        return [StoredSample._make(row) for row in rows]

    def _asked(self, sql: str, bindings: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Ask the archive of the current generation; `sql` names its parts."""
        if not self._has_archive:
            raise ArchiveNeededError
        snapshot = self._snapshots.current()
        sources = {
            "votes": archived_rows(ARCHIVED_VOTES, snapshot.archive.votes),
            "texts": archived_rows(ARCHIVED_TEXTS, snapshot.archive.texts),
        }
        try:
            return snapshot.ask(sql.format(**sources), bindings)
        except duckdb.Error as error:
            raise LogUnavailableError(f"the archive does not answer: {error}") from error


def _version(sample: StoredSample) -> Sequence[Any]:
    task = sample.sample_id if sample.task_id is None else sample.task_id
    return (sample.validator_hotkey, sample.miner_hotkey, task)
