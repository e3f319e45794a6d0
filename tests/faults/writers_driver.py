"""A child program: two services and a courier at work on one log at once, in one journal."""

import json
import os
import pickle
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from tests.faults.log_driver import CHECKPOINT_PAGES, SIGNERS, Client, samples
from tests.faults.shim import Inside
from tests.warehouse.builders import request, settings
from warehouse import sqlite_schema
from warehouse.backends import open_outbox

WRITERS = 2
SUBMISSIONS = 16
SECONDS_MAX = 60
PAUSE_SECONDS = 0.002


def write(client, requests):
    """Append one after the other; each acknowledgement is marked in the journal."""
    log = client.open()
    for number, signed in enumerate(requests):
        client.insist((signed, partial(log.append_samples, signed, samples(number), None)))
        time.sleep(PAUSE_SECONDS)
    log.close()


def carry(home, is_over):
    """Take results and forget them, as fast as they come."""
    outbox = open_outbox(settings(home))
    while not is_over():
        outbox.done(outbox.claim(2))
        time.sleep(PAUSE_SECONDS)
    outbox.close()


def work_as(task_path, task, number):
    root, work = Path(task["root"]), Path(task["work"])
    sqlite_schema.WAL_CHECKPOINT_PAGES = CHECKPOINT_PAGES
    home, inside = root / "case-0", Inside(work)
    own = pickle.loads((work / "requests").read_bytes())[number::WRITERS]
    with (
        (work / f"ledger-{number}").open("a") as ledger,
        inside.journal(work / "journal-0"),
    ):
        (work / f"ready-{number}").touch()
        deadline = time.monotonic() + SECONDS_MAX
        while len(list(work.glob("ready-*"))) <= WRITERS:
            assert time.monotonic() < deadline
            time.sleep(PAUSE_SECONDS)
        if number < WRITERS:
            write(Client(home, ledger, inside, reads=False), own)
            (work / f"over-{number}").touch()
        else:
            carry(home, lambda: len(list(work.glob("over-*"))) == WRITERS)


def main():
    task = json.loads(Path(sys.argv[1]).read_text())
    if len(sys.argv) > 2:
        work_as(sys.argv[1], task, int(sys.argv[2]))
        return
    root, work = Path(task["root"]), Path(task["work"])
    (root / "case-0" / "log").mkdir(parents=True)
    requests = [request(SIGNERS[number % WRITERS], number) for number in range(SUBMISSIONS)]
    (work / "requests").write_bytes(pickle.dumps(requests))
    if task.get("lie"):
        Inside(work).control.lie_about_syncs()
    command = [sys.executable, "-m", "tests.faults.writers_driver", sys.argv[1]]
    children = [
        subprocess.Popen([*command, str(number)], env=dict(os.environ))
        for number in range(WRITERS + 1)
    ]
    codes = [child.wait(SECONDS_MAX) for child in children]
    assert codes == [0] * len(children), codes
    signatures = [signed.signature.hex() for signed in requests]
    (work / "report.json").write_text(json.dumps({"signatures": signatures}))


if __name__ == "__main__":
    main()
