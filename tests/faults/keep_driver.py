"""A child program: the nightly work over a warehouse that has old records, with a fault in it, then
once more without one.
"""

import errno
import json
import os
import shutil
import sys
import time
from pathlib import Path

from pipelines.run import MaterializationError, keep, materialize
from tests.builders import write_metagraph
from tests.faults.publish_driver import fill, pipeline_settings, replace
from tests.faults.shim import Fault, Inside
from tests.warehouse.builders import hotkey, settings
from warehouse import sqlite_keeper
from warehouse.sqlite_log import SqliteLog

DAY = 86_400
OLD_SECONDS = 7_200
KEPT = {"log_retention_days": 1, "generations_kept": 2, "generations_hourly_days": 0}


def prepare(root, home, set_clock):
    """Make a log whose beginning is three days old, and an archive of several small files."""
    write_metagraph(
        root / "metagraph.json",
        validators=[{"hotkey": hotkey(name)} for name in ("v1", "v2")],
        miners=[{"hotkey": hotkey(name)} for name in ("old", "young")],
    )
    log = SqliteLog(settings(home))
    for days, tasks in ((-3, (1, 2)), (-2, (2, 103)), (0, (4,))):
        set_clock(days * DAY)
        for task in tasks:
            fill(log, task)
        materialize(pipeline_settings(root), settings(home))
    set_clock(0)
    log.close()
    # What lost its name may go: nobody is writing it any more.
    at = time.time() - OLD_SECONDS
    for path in home.rglob("*.parquet"):
        os.utime(path, (at, at))


def attempt(root, home):
    try:
        keep(pipeline_settings(root), settings(home, **KEPT))
    except MaterializationError as error:
        return {"refused": str(error)}
    except Exception as error:  # noqa: BLE001  (the test tells it)
        return {"raised": f"{type(error).__name__}: {error}"}
    return {"kept": True}


def main():
    task = json.loads(Path(sys.argv[1]).read_text())
    root, work = Path(task["root"]), Path(task["work"])
    home, base, inside = root / "home", work / "base", Inside(work)
    # More than one transaction for what leaves the log.
    sqlite_keeper.DROP_CHUNK_SEQS = 5
    if not base.exists():
        prepare(root, home, inside.control.set_clock)
        shutil.copytree(home, base, symlinks=True)
    report = []
    for number, case in enumerate(task["cases"]):
        replace(base, home)
        inside.control.plan(case and Fault(**{**case, "error": getattr(errno, case["error"])}))
        with inside.journal(work / f"journal-{number}" if task.get("journal") else "/dev/null"):
            first = attempt(root, home)
        hit = inside.control.hit
        inside.control.plan(None)
        replace(home, work / f"after-{number}")
        then = attempt(root, home) if case else None
        replace(home, work / f"then-{number}")
        report.append({"hit": hit, "first": first, "then": then})
    (work / "report.json").write_text(json.dumps({"cases": report}))


if __name__ == "__main__":
    main()
