"""A child program: `leoma restore` onto a disk with a fault in it, then the same command again."""

import contextlib
import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

from cli.main import run
from tests.faults.publish_driver import replace
from tests.faults.shim import Fault, Inside


def attempt(command):
    """Return the exit code and what was printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = run(command)
    return [code, printed.getvalue()]


def main():
    task = json.loads(Path(sys.argv[1]).read_text())
    root, work = Path(task["root"]), Path(task["work"])
    home, inside, report = root / "home", Inside(work), []
    os.environ |= {**task["environment"], "LEOMA_HOME": str(home)}
    for number, case in enumerate(task["cases"]):
        shutil.rmtree(home, ignore_errors=True)
        if task["older_log"]:
            shutil.copytree(task["older_log"], home / "log")
        inside.control.plan(case and Fault(**{**case, "error": getattr(errno, case["error"])}))
        with inside.journal(work / f"journal-{number}" if task.get("journal") else "/dev/null"):
            first = attempt(task["command"])
        hit = inside.control.hit
        inside.control.plan(None)
        home.mkdir(exist_ok=True)
        replace(home, work / f"after-{number}")
        then = attempt(task["command"]) if case else None
        replace(home, work / f"then-{number}")
        report.append({"hit": hit, "first": first, "then": then})
    (work / "report.json").write_text(json.dumps({"cases": report}))


if __name__ == "__main__":
    main()
