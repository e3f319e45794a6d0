"""A SQLite log that is looked at and stays as it is: what `leoma fsck` asks of it alone."""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import apsw

from warehouse.settings import WarehouseSettings
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_schema import schema_statements, translated_errors

# What `disorder` takes, in instructions of SQLite's machine: 124 where each sample is a submission
# of its own, 163 where a hundred share one.
STEPS_A_RECORD = 150
STEPS_TOLD = 1_000

# What SQLite makes for itself has no text, or a name of its own.
SCHEMA = """
    SELECT type || ' ' || name, sql FROM sqlite_master
    WHERE sql IS NOT NULL AND substr(name, 1, 7) <> 'sqlite_'
"""
# A newer submission takes the place of the one that waits, and retention takes both away.
RESULTS_OUT_OF_PLACE = """
    WITH newest (task, hotkey, seq) AS (
        SELECT s.task, v.hotkey, max(s.submission_seq)
        FROM samples AS s INDEXED BY samples_version
        CROSS JOIN hotkeys AS v ON v.id = s.validator_id
        WHERE s.task IN (SELECT task_id FROM outbox) GROUP BY s.task, v.hotkey
    )
    SELECT o.submission_seq, o.task_id, o.validator_hotkey FROM outbox AS o
    LEFT JOIN newest AS n ON n.task = o.task_id AND n.hotkey = o.validator_hotkey
    WHERE n.seq IS NOT o.submission_seq
"""
NO_SIGNATURES = "SELECT count(*) FROM spent_signatures WHERE length(signature) <> 64"


class SqliteInspector(SqliteKeeper):
    """`warehouse.log.LogKeeper` on a SQLite file that is there; nothing of it is changed."""

    def __init__(self, settings: WarehouseSettings) -> None:
        super().__init__(settings, is_inspection=True)

    def disorder(self, on_progress: Callable[[int, int], None] = lambda *_: None) -> list[str]:
        """Also of its schema. `on_progress` is given an estimate: steps taken, and to take."""
        with self._counted(on_progress):
            return self._changed_schema() + super().disorder()

    def misplaced(self) -> list[str]:
        """Return what waits for object storage, or is used up, and cannot have come to that."""
        found = [
            f"the result of {validator} about task {task_id} waits for submission {seq}, which is "
            "not the newest that says something about it"
            for seq, task_id, validator in self._rows(RESULTS_OUT_OF_PLACE, ())
        ]
        if count := self._number(NO_SIGNATURES):
            found.append(f"{count} of the signatures that are used up are none")
        return found

    def _changed_schema(self) -> list[str]:
        """Without its triggers and its unique index the log refuses nothing."""
        made = apsw.Connection(":memory:")
        made.execute(schema_statements())
        expected = set(made.execute(SCHEMA).fetchall())
        made.close()
        changed = {str(name) for name, _ in expected ^ set(self._rows(SCHEMA, ()))}
        return [f"the {name} is not that of this version" for name in sorted(changed)]

    @contextlib.contextmanager
    def _counted(self, on_progress: Callable[[int, int], None]) -> Iterator[None]:
        records = self.head() - self.dropped_through()
        total = max(1, records * STEPS_A_RECORD // STEPS_TOLD)
        steps = itertools.count(1)

        def told() -> bool:
            on_progress(min(next(steps), total), total)
            return False

        with translated_errors():
            connection = self._connection()
            connection.set_progress_handler(told, STEPS_TOLD)
        try:
            yield
        finally:
            # Damage closes it.
            with contextlib.suppress(apsw.Error):
                connection.set_progress_handler(None)
