"""Every operation of the log on its disk fails in turn, both ways, and half done.

A short selection by default; all operations where LEOMA_TORTURE=1. Each case is a whole life of a
service: it starts, takes in, checkpoints, stops, starts again.
"""

import collections
import itertools
import json

import pytest

from tests.faults.log_driver import SUBMISSIONS
from tests.faults.shim import CHANGES, run_child
from tests.warehouse.builders import settings
from warehouse.sqlite_keeper import SqliteKeeper

DRIVER = "tests.faults.log_driver"
# Of the writes only every so many in the short selection: most are pages of the same transaction.
WRITE_STRIDE = 9
RECORDS = 2 + 3 * (SUBMISSIONS + 1)
ERRORS = ("EIO", "ENOSPC", "EROFS")
READS = {True: "with a reader", False: "without a reader"}

UNFELT = "unfelt"  # nobody needed to hear of it: a later operation makes up for it
AT_START = "the service did not start, and did at the second attempt"
AT_APPEND = "the append was answered `unavailable`, and its repeat stored it"
# What the caller must see, by the operation that failed and its file; applied or not makes no
# difference, which is the point. Of the log's own file only the checkpoint knows, which comes
# after the commit and is made again by the next one. Names of the log: "" is the file itself.
EXPECTED = {
    ("mkdir", "directory"): {AT_START},
    ("create", ".lock"): {AT_START},
    ("create", ".lock.next"): {AT_START},
    ("create", ""): {AT_START},
    ("create", "-journal"): {AT_START},
    ("create", "-wal"): {AT_START, AT_APPEND},
    ("create", "-shm"): {AT_START, AT_APPEND},
    ("write", ""): {AT_START, UNFELT},
    ("write", "-journal"): {AT_START},
    ("write", "-wal"): {AT_START, AT_APPEND},
    ("write", "-shm"): {AT_START, AT_APPEND},
    ("sync", ""): {AT_START, UNFELT},
    ("sync", "-journal"): {AT_START},
    # Unfelt is the checkpoint's. That a commit's own is always felt, `test_power_loss` proves.
    ("sync", "-wal"): {AT_START, AT_APPEND, UNFELT},
    ("sync", "directory"): {AT_START, UNFELT},
    ("truncate", ""): {UNFELT},
    ("truncate", "-shm"): {AT_START, AT_APPEND},
    ("unlink", "-journal"): {AT_START},
    ("unlink", "-wal"): {UNFELT},
    ("unlink", "-shm"): {UNFELT},
    ("open_read", "directory"): {AT_START, UNFELT},
    ("open_write", ".lock"): {AT_START, AT_APPEND},
    ("open_write", ".lock.next"): {AT_START, AT_APPEND},
    ("open_write", ""): {AT_START, AT_APPEND, UNFELT},
    ("open_write", "-wal"): {AT_START, AT_APPEND, UNFELT},
}
# Where the call failed but had made it, it is there for whoever asks again.
MADE_ANYWAY = {("create", "-wal"), ("create", "-shm"), ("mkdir", "directory")}
FELT_AS = {
    "opened": UNFELT,
    "stored": UNFELT,
    "unavailable opened": AT_START,
    "unavailable stored": AT_APPEND,
}


def run(shim, directory, cases, *, reads, is_burst=False):
    """Return what the child reports of the cases, and the directory of their homes."""
    root, work = directory / "disk", directory / "work"
    root.mkdir(parents=True)
    work.mkdir()
    task = {"cases": cases, "reads": reads, "is_burst": is_burst}
    return run_child(shim, root, work, DRIVER, **task), root


def undisturbed(shim, directory, *, reads, is_burst=False):
    """Return how many operations of each kind a run without faults has."""
    report, _ = run(shim, directory, [None], reads=reads, is_burst=is_burst)
    (case,) = report["cases"]
    assert case["failure"] is None
    assert {tuple(tries) for tries in case["outcomes"]} == {("opened",), ("stored",)}
    return case["seen"]


def cases_of(seen, kinds, mode, errors, *, is_torture):
    """Return one fault for each operation; the error changes from one to the next."""
    cases = []
    for kind in kinds:
        stride = 1 if is_torture or kind != "write" else WRITE_STRIDE
        names = itertools.cycle(errors)
        cases += [
            {"nth": nth, "kinds": [kind], "mode": mode, "error": next(names)}
            for nth in range(1, seen[kind] + 1, stride)
        ]
    return cases


def wrong_with(case, outcome, signatures, home, ledger):
    """Say what one case broke, None where nothing."""
    if outcome["hit"] is None:
        return "the fault was never met"
    if outcome["failure"]:
        return outcome["failure"]
    tries = [" ".join(attempts) for attempts in outcome["outcomes"]]
    felt = [one for one in tries if " " in one]
    if len(felt) > 1 or not set(felt) <= set(FELT_AS):
        return f"one fault was felt as {felt}"
    kind, path = outcome["hit"]
    _, is_file, file = path.rpartition("/log.sqlite")
    operation = (kind, file if is_file else "directory")
    allowed = EXPECTED.get(operation, set())
    if operation in MADE_ANYWAY and case["mode"] == "applied":
        allowed = allowed | {UNFELT}
    seen = FELT_AS[felt[0]] if felt else UNFELT
    if seen not in allowed:
        return f"{operation}: {seen}"
    return wrong_on_disk(home, signatures, ledger)


def wrong_on_disk(home, signatures, ledger, *, is_ordered=True):
    """Compare the log with what its clients were told; everything was acknowledged in the end.

    In the order of the acknowledgements, unless many were under way at once.
    """
    keeper = SqliteKeeper(settings(home))
    try:
        if found := keeper.check():
            return f"the check finds {found}"
        rows = list(itertools.chain.from_iterable(keeper.submissions_between(0, RECORDS)))
        votes = [row for chunk in keeper.votes_between(0, RECORDS) for row in chunk.rows()]
        head = keeper.head()
    finally:
        keeper.close()
    if not is_ordered:
        signatures = sorted(signatures, key=[row.signature.hex() for row in rows].index)
    if head != RECORDS or [row.signature.hex() for row in rows] != signatures:
        return "not each submission once, in the order of their acknowledgements"
    told = sorted((json.loads(line) for line in ledger), key=lambda one: one["seq"])
    stored = [
        {"signature": row.signature.hex(), "seq": row.seq, "samples": row.sample_count}
        for row in rows
    ]
    if told != stored:
        return f"{told} was acknowledged, but {stored} is in the log"
    samples = collections.Counter((vote.task_id, vote.miner_hotkey) for vote in votes)
    return None if set(samples.values()) == {1} else f"samples are not there once: {samples}"


def wrong_of(shim, directory, cases, *, reads):
    """Run the cases; return a line for each that broke something."""
    report, root = run(shim, directory, cases, reads=reads)
    found = []
    for number, (case, outcome) in enumerate(zip(cases, report["cases"], strict=True)):
        ledger = (directory / "work" / f"ledger-{number}").read_text().splitlines()
        wrong = wrong_with(case, outcome, report["signatures"], root / f"case-{number}", ledger)
        if wrong:
            found.append(f"{case}, {outcome['hit']}: {wrong}")
    return found


@pytest.mark.parametrize(
    ("mode", "reads"),
    [
        ("not_applied", True),
        ("applied", False),
        ("torn", True),
        pytest.param("not_applied", False, marks=pytest.mark.torture),
        pytest.param("applied", True, marks=pytest.mark.torture),
        pytest.param("torn", False, marks=pytest.mark.torture),
    ],
    ids=lambda value: value if isinstance(value, str) else READS[value],
)
def test_every_change_of_the_disk_may_fail(
    shim, is_torture, tmp_path, mode, *, reads, record_property
):
    seen = undisturbed(shim, tmp_path / "undisturbed", reads=reads)
    kinds = ["write"] if mode == "torn" else [kind for kind in CHANGES if seen[kind]]
    assert {"write", "sync", "truncate", "create", "unlink", "mkdir"} >= set(kinds)
    cases = cases_of(seen, kinds, mode, ERRORS, is_torture=is_torture)
    found = wrong_of(shim, tmp_path / "faults", cases, reads=reads)
    record_property("faults injected", len(cases))
    assert not found, "\n".join(found)


def test_every_handle_may_be_missing(shim, tmp_path, record_property):
    seen = undisturbed(shim, tmp_path / "undisturbed", reads=True)
    kinds = ("open_read", "open_write", "create")
    cases = cases_of(seen, kinds, "not_applied", ("EMFILE",), is_torture=True)
    found = wrong_of(shim, tmp_path / "faults", cases, reads=True)
    record_property("faults injected", len(cases))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("kind", ["write", "sync"])
def test_a_commit_of_many_may_fail(shim, is_torture, tmp_path, kind, record_property):
    """Everybody in it is told, everybody repeats, and each is stored once."""
    seen = undisturbed(shim, tmp_path / "undisturbed", reads=False, is_burst=True)
    cases = cases_of(seen, [kind], "not_applied", ["EIO"], is_torture=is_torture)
    report, root = run(shim, tmp_path / "faults", cases, reads=False, is_burst=True)
    found, felt = [], []
    for number, outcome in enumerate(report["cases"]):
        ledger = (tmp_path / "faults" / "work" / f"ledger-{number}").read_text().splitlines()
        felt.append(outcome["outcomes"].count(["unavailable", "stored"]))
        wrong = outcome["failure"] or wrong_on_disk(
            root / f"case-{number}", report["signatures"], ledger, is_ordered=False
        )
        if wrong or outcome["hit"] is None:
            found.append(f"{cases[number]}, {outcome['hit']}: {wrong}")
    record_property("faults injected", len(cases))
    assert not found, "\n".join(found)
    assert SUBMISSIONS in felt, "no commit of many failed"


def test_a_writer_that_could_not_open_for_writing_opens_again(shim, tmp_path, record_property):
    seen = undisturbed(shim, tmp_path / "undisturbed", reads=True)
    cases = cases_of(seen, ("open_write",), "not_applied", ("EMFILE",), is_torture=True)
    found = wrong_of(shim, tmp_path / "faults", cases, reads=True)
    record_property("faults injected", len(cases))
    assert not found, "\n".join(found)
