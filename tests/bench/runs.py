"""Materialisations in a process of their own: `python -m tests.bench.runs MODE TIMES [NICE]`.

Settings come from the environment as for `leoma materialize`. MODE `again` runs TIMES times on the
same log, `all` does so and archives all texts; `grow` appends some 10,000 samples of new tasks
before each run; `moved` moves a stake, after which all votes weigh otherwise. With NICE it gives
way as runs under Dagster do. One JSON line a run: wall and own seconds (the steps' sum, without
what Dagster does around them), the largest memory so far, and the log's head.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from cli.materialize import NO_LIMIT
from cli.orchestration import give_way
from pipelines.run import materialize
from pipelines.settings import PipelineSettings
from tests.bench import history
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_log import SqliteLog

NEW_TASKS = 2
NEW_SAMPLES = NEW_TASKS * history.VALIDATORS * history.MINERS
APPEND = "append"


def grow(warehouse: WarehouseSettings) -> None:
    """Append `NEW_SAMPLES` samples about the tasks after the latest one."""
    log = SqliteLog(warehouse)
    try:
        latest = log.latest_sampled_task() or 0
        tasks = range(latest + 1, latest + 1 + NEW_TASKS)
        now_unix = int(time.time())
        history.announce(log, tasks[-1], now_unix)
        for _ in history.append_tasks(log, tasks, now_unix):
            pass
    finally:
        log.close()


def grow_elsewhere() -> None:
    """Do it in another process, so that its memory is not the run's."""
    subprocess.run([sys.executable, "-m", "tests.bench.runs", APPEND, "0"], check=True)


def move_a_stake(metagraph: Path) -> None:
    """Have a metagraph file say another stake, a block later."""
    said = json.loads(metagraph.read_text())
    said["block"] += 1
    said["validators"][0]["stake"] += 1
    metagraph.write_text(json.dumps(said))


def main() -> None:
    mode, times = sys.argv[1], int(sys.argv[2])
    settings, warehouse = PipelineSettings(), WarehouseSettings()
    if mode == APPEND:
        grow(warehouse)
    if mode == "all":
        warehouse = warehouse.model_copy(update={"archive_texts_per_run_max": NO_LIMIT})
    for nice in sys.argv[3:]:
        give_way(int(nice))
    for _ in range(times):
        if mode == "grow":
            grow_elsewhere()
        elif mode == "moved":
            move_a_stake(Path(settings.chain_source))
        made = materialize(settings, warehouse)
        line = {
            **asdict(made),
            "path": str(made.path),
            "own_seconds": sum(made.step_seconds.values()),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
