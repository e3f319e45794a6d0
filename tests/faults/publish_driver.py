"""A child program: one run over an existing warehouse, with a fault in it, then one without."""

import errno
import json
import shutil
import sys
from pathlib import Path

from pipelines.run import MaterializationError, materialize
from pipelines.settings import PipelineSettings
from tests.builders import write_metagraph
from tests.faults.shim import Fault, Inside
from tests.warehouse.builders import append, hotkey, sample, settings
from warehouse.generation import Generations
from warehouse.sqlite_log import SqliteLog

VALIDATORS, MINERS = ("v1", "v2"), ("old", "young")


def pipeline_settings(root):
    return PipelineSettings(chain_source=str(root / "metagraph.json"), scorer_task_window=3)


def prepare(root, home, *, is_empty):
    """Make a warehouse with one generation, and a log that has grown since; or nothing at all."""
    write_metagraph(
        root / "metagraph.json",
        validators=[{"hotkey": hotkey(name)} for name in VALIDATORS],
        miners=[{"hotkey": hotkey(name)} for name in MINERS],
    )
    if is_empty:
        return
    log = SqliteLog(settings(home))
    for task in (1, 2, 3):
        fill(log, task)
    materialize(pipeline_settings(root), settings(home))
    for task in (3, 4, 205):
        fill(log, task, passed=task != 4)
    log.close()


def fill(log, task, *, passed=True):
    for validator in VALIDATORS:
        samples = [sample(miner, task, passed=passed == (miner == "old")) for miner in MINERS]
        append(log, *samples, signer=validator)


def attempt(root, home):
    """Return what a run published, or why it did not."""
    try:
        return {"published": materialize(pipeline_settings(root), settings(home)).snapshot_id}
    except MaterializationError as error:
        return {"refused": str(error)}
    except Exception as error:  # noqa: BLE001  (the test tells it)
        return {"raised": f"{type(error).__name__}: {error}"}


def replace(source, target):
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def main():
    task = json.loads(Path(sys.argv[1]).read_text())
    root, work = Path(task["root"]), Path(task["work"])
    # Always the same path: the views in a generation name the archive by it.
    home, base, inside = root / "home", work / "base", Inside(work)
    # Made once: the tables tell when their samples came.
    if not base.exists():
        home.mkdir()
        prepare(root, home, is_empty=task.get("from_nothing", False))
        shutil.copytree(home, base, symlinks=True)
    before = Generations(settings(base)).current()
    if task.get("lie"):
        inside.control.lie_about_syncs()
    report = []
    for number, case in enumerate(task["cases"]):
        replace(base, home)
        journal = work / f"journal-{number}" if task.get("journal") else "/dev/null"
        inside.control.plan(case and Fault(**{**case, "error": getattr(errno, case["error"])}))
        with inside.journal(journal):
            first = attempt(root, home)
            inside.mark(json.dumps(first))
        seen, hit = inside.control.seen, inside.control.hit
        inside.control.plan(None)
        replace(home, work / f"after-{number}")
        then = attempt(root, home) if case else None
        replace(home, work / f"then-{number}")
        report.append({"seen": seen, "hit": hit, "first": first, "then": then})
    (work / "report.json").write_text(
        json.dumps({"before": before and before.snapshot_id, "cases": report})
    )


if __name__ == "__main__":
    main()
