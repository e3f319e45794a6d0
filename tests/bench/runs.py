"""Materialisations in a process of their own: `python -m tests.bench.runs MODE TIMES`.

Settings come from the environment as for `leoma materialize`. MODE `again` runs TIMES times on the
same log; `grow` appends 10,000 samples of a new task before each run. One JSON line a run: wall and
own seconds (the steps' sum, without what Dagster does around them), and the log's head.
"""

import json
import sys
import time
from dataclasses import asdict

from pipelines.run import materialize
from pipelines.settings import PipelineSettings
from tests.bench import history
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_log import SqliteLog

NEW_SAMPLES = 10_000


def grow(warehouse: WarehouseSettings) -> None:
    """Append `NEW_SAMPLES` samples about the tasks after the latest one."""
    log = SqliteLog(warehouse)
    try:
        latest = log.latest_sampled_task() or 0
        tasks = range(
            latest + 1, latest + 1 + NEW_SAMPLES // (history.VALIDATORS * history.MINERS)
        )  # fmt: skip
        now_unix = int(time.time())
        history.announce(log, tasks[-1], now_unix)
        for _ in history.append_tasks(log, tasks, now_unix):
            pass
    finally:
        log.close()


def main() -> None:
    mode, times = sys.argv[1], int(sys.argv[2])
    settings, warehouse = PipelineSettings(), WarehouseSettings()
    for _ in range(times):
        if mode == "grow":
            grow(warehouse)
        made = materialize(settings, warehouse)
        own = sum(made.step_seconds.values())
        line = {**asdict(made), "path": str(made.path), "own_seconds": own}
        print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
