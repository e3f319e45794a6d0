"""Keeping the SQLite log: the check of all of it, and the one exception to append-only."""

import itertools

import apsw

from warehouse.evidence import unsigned
from warehouse.files import locked_in_turn
from warehouse.log import RefusedError
from warehouse.sqlite_questions import HEAD, IS_FILING_KNOWN
from warehouse.sqlite_reads import SqliteReader
from warehouse.sqlite_schema import connect, lock_path, translated_errors

# Records that leave in one transaction, so that no append waits long for its turn.
DROP_CHUNK_SEQS = 20_000

RAISE_FLOOR = "UPDATE retention SET dropped_through = ? WHERE dropped_through < ?"
DROP_FILED = """
    DELETE FROM samples_by_validator WHERE (validator_id, seq) IN (
        SELECT validator_id, seq FROM samples WHERE seq <= :floor
    );
    DELETE FROM samples_by_miner WHERE (miner_id, seq) IN (
        SELECT miner_id, seq FROM samples WHERE seq <= :floor
    );
"""
DROPS = (
    "DELETE FROM samples WHERE seq <= ?",
    "DELETE FROM submissions WHERE seq <= ? AND sample_count > 0",
)
# Found by their keys: the outbox may be long, and this happens for every chunk.
DROP_RESULTS = """
    DELETE FROM outbox WHERE submission_seq <= ?1 AND (task_id, validator_hotkey) IN (
        SELECT s.task, v.hotkey FROM samples AS s CROSS JOIN hotkeys AS v ON v.id = s.validator_id
        WHERE s.seq <= ?1
    )
"""
DROP_TEXTS = "DELETE FROM sample_texts WHERE seq <= ?"
# In one statement, so that appends and retention may go on meanwhile.
COUNT_ABOVE = f"""
    WITH floor(seq) AS (SELECT dropped_through FROM retention)
    SELECT ({HEAD}) - floor.seq, (SELECT count(*) FROM submissions WHERE seq > floor.seq)
        + (SELECT count(*) FROM samples WHERE seq > floor.seq)
        + (SELECT count(*) FROM events WHERE seq > floor.seq)
    FROM floor
"""
SEQS_IN_TWO_TABLES = """
    SELECT seq FROM submissions WHERE seq IN (SELECT seq FROM samples)
    UNION ALL SELECT seq FROM submissions WHERE seq IN (SELECT seq FROM events)
    UNION ALL SELECT seq FROM samples WHERE seq IN (SELECT seq FROM events)
"""
SAMPLES_OUT_OF_PLACE = """
    SELECT s.seq FROM samples AS s LEFT JOIN submissions AS b ON b.seq = s.submission_seq
    LEFT JOIN hotkeys AS v ON v.id = s.validator_id LEFT JOIN hotkeys AS m ON m.id = s.miner_id
    WHERE b.seq IS NULL OR s.seq <= b.seq OR s.seq > b.seq + b.sample_count
        OR m.id IS NULL OR v.hotkey IS NOT b.hotkey
"""
SAMPLES_WITHOUT_TEXTS = """
    SELECT seq FROM samples WHERE seq NOT IN (SELECT seq FROM sample_texts)
    UNION ALL SELECT seq FROM sample_texts WHERE seq NOT IN (SELECT seq FROM samples)
"""
SAMPLES_FILED_WRONGLY = """
    SELECT s.seq FROM samples AS s
    LEFT JOIN samples_by_validator AS v ON v.validator_id = s.validator_id AND v.seq = s.seq
    LEFT JOIN samples_by_miner AS m ON m.miner_id = s.miner_id AND m.seq = s.seq
    WHERE (v.seq IS NOT NULL) + (m.seq IS NOT NULL)
        <> 2 * (s.seq <= (SELECT filed_through FROM filing))
    UNION ALL SELECT f.seq FROM samples_by_validator AS f LEFT JOIN samples AS s ON s.seq = f.seq
    WHERE s.validator_id IS NOT f.validator_id
    UNION ALL SELECT f.seq FROM samples_by_miner AS f LEFT JOIN samples AS s ON s.seq = f.seq
    WHERE s.miner_id IS NOT f.miner_id
"""
SUBMISSIONS_WITHOUT_SAMPLES = """
    SELECT b.seq FROM submissions AS b WHERE b.sample_count <> (
        SELECT count(*) FROM samples AS s WHERE s.seq > b.seq AND s.seq <= b.seq + b.sample_count
    )
"""
EVENTS_WITHOUT_SUBMISSION = """
    SELECT e.seq FROM events AS e LEFT JOIN submissions AS b ON b.seq = e.seq - 1
    WHERE b.seq IS NULL OR b.sample_count <> 0 OR b.hotkey <> e.admin_hotkey
"""


class SqliteKeeper(SqliteReader):
    """`warehouse.log.LogKeeper` on a SQLite file."""

    def drop_through(self, seq: int) -> int:
        if seq > self.head():
            raise RefusedError(f"the log ends at {self.head()}, before {seq}")
        dropped = 0
        with translated_errors():
            connection = connect(self.path, apsw.SQLITE_OPEN_READWRITE)
            try:
                floor = self.dropped_through()
                while floor < seq:
                    floor = min(floor + DROP_CHUNK_SEQS, seq)
                    with locked_in_turn(lock_path(self.path), self.settings.log_lock_seconds_max):
                        dropped += _drop_chunk(connection, self._whole(floor))
            finally:
                connection.close()
        return dropped

    def check(self) -> list[str]:
        submissions = itertools.chain.from_iterable(self.submissions_between(0, self.head()))
        return self.disorder() + [problem for row in submissions if (problem := unsigned(row))]

    def disorder(self) -> list[str]:
        found = [
            f"{name} at seq {row[0]}"
            for name, sql in (
                ("two records", SEQS_IN_TWO_TABLES),
                ("a sample without its submission", SAMPLES_OUT_OF_PLACE),
                ("a sample without texts, or texts without a sample", SAMPLES_WITHOUT_TEXTS),
                ("a torn submission", SUBMISSIONS_WITHOUT_SAMPLES),
                ("an event without its submission", EVENTS_WITHOUT_SUBMISSION),
            )
            for row in self._rows(sql, ())
        ]
        if not self._rows(f"SELECT {IS_FILING_KNOWN}", ())[0][0]:
            found.append("nothing says how far samples are filed")
        else:
            found += [
                f"a sample that is not filed as it should be at seq {row[0]}"
                for row in self._rows(SAMPLES_FILED_WRONGLY, ())
            ]
        # Seqs are unique within each table and, by the check above, across them: the count says
        # whether one is missing.
        expected, count = self._rows(COUNT_ABOVE, ())[0]
        if count != expected:
            found.append(f"{expected - count} of {expected} records are missing")
        integrity = [row[0] for row in self._rows("PRAGMA integrity_check", ())]
        if integrity != ["ok"]:
            found += [f"SQLite finds the file damaged: {one}" for one in integrity]
        return found

    def _whole(self, seq: int) -> int:
        """Return the last seq up to `seq` that ends a submission: none is torn, and nothing that
        the caller did not vouch for leaves.
        """
        rows = self._rows(
            "SELECT seq, seq + max(sample_count, 1) FROM submissions WHERE seq <= ? "
            "ORDER BY seq DESC LIMIT 1",
            (seq,),
        )
        return seq if not rows or rows[0][1] <= seq else int(rows[0][0]) - 1


def _drop_chunk(connection: apsw.Connection, floor: int) -> int:
    """Return how many samples and submissions left."""
    dropped = 0
    with connection:
        connection.execute(RAISE_FLOOR, (floor, floor))
        connection.execute(DROP_RESULTS, (floor,))
        connection.execute(DROP_FILED, {"floor": floor})
        for statement in DROPS:
            connection.execute(statement, (floor,))
            dropped += connection.changes()
        connection.execute(DROP_TEXTS, (floor,))
    return dropped
