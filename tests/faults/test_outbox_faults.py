"""Every operation of the outbox on its disk fails in turn: no result is lost, none stays old.

A short selection by default; all operations, both ways and half done, where LEOMA_TORTURE=1.
"""

import pytest

from tests.faults.shim import CHANGES, run_child
from tests.faults.test_log_faults import cases_of
from tests.warehouse.builders import settings
from warehouse.backends import open_outbox
from warehouse.sqlite_keeper import SqliteKeeper

DRIVER = "tests.faults.outbox_driver"
FEW = 2  # every so many cases in the short selection
# Two submissions of a task each are one record for the request and one for the sample.
RECORDS = 2 * 5
UNMET_SHARE = 50
ERRORS = ("EIO", "ENOSPC", "EROFS")


class Couriers:
    def __init__(self, shim, directory):
        self.shim, self.directory = shim, directory

    def live(self, cases):
        """Return what the child reports of the cases, and the directory of their homes."""
        # The same requests for all, so that all have as many operations.
        work = self.directory / "work"
        work.mkdir(exist_ok=True)
        root = self.directory / f"disk-{len(list(self.directory.iterdir()))}"
        root.mkdir()
        return run_child(self.shim, root, work, DRIVER, cases=cases)["cases"], root


@pytest.fixture
def couriers(shim, tmp_path):
    return Couriers(shim, tmp_path)


@pytest.fixture
def seen(couriers):
    (case,), root = couriers.live([None])
    assert (case["failure"], case["felt"]) == (None, [])
    assert wrong_with(case, root / "case-0") is None
    return case["seen"]


def wrong_with(outcome, home):
    if outcome["failure"]:
        return outcome["failure"]
    if len(outcome["felt"]) > 1:
        return f"one fault was felt as {outcome['felt']}"
    if outcome["put"] != outcome["newest"]:
        return f"{outcome['put']} was put last, but {outcome['newest']} is the newest"
    keeper, outbox = SqliteKeeper(settings(home)), open_outbox(settings(home))
    try:
        if found := keeper.check():
            return f"the check finds {found}"
        if (head := keeper.head()) != RECORDS:
            return f"{head} records instead of {RECORDS}"
        return f"left: {outbox.status()}" if outbox.status().depth else None
    finally:
        outbox.close()
        keeper.close()


def wrong_of(couriers, cases):
    outcomes, root = couriers.live(cases)
    found = []
    for number, (case, outcome) in enumerate(zip(cases, outcomes, strict=True)):
        if wrong := wrong_with(outcome, root / f"case-{number}"):
            found.append(f"{case}, {outcome['hit']}: {wrong}")
    # Tokens and times are never the same: the last write of a life may be missing in another.
    if (unmet := sum(outcome["hit"] is None for outcome in outcomes)) > len(cases) / UNMET_SHARE:
        found.append(f"{unmet} faults were never met")
    return found


def test_every_operation_may_fail(couriers, seen, is_torture, record_property):
    changes = [kind for kind in CHANGES if seen[kind]]
    handles = ("open_read", "open_write", "create")
    cases = []
    for mode, kinds, errors in (
        ("not_applied", changes, ERRORS),
        ("applied", changes, ERRORS),
        ("torn", ["write"], ERRORS),
        ("not_applied", handles, ("EMFILE",)),
    ):
        chosen = cases_of(seen, kinds, mode, errors, is_torture=is_torture)
        cases += chosen if is_torture else chosen[::FEW]
    # What is for reading only in one process stays so for all its connections.
    cases += [
        {"nth": nth, "kinds": ["create"], "mode": "applied", "error": "EROFS"}
        for nth in range(1, seen["create"] + 1)
    ]
    found = wrong_of(couriers, cases)
    record_property("faults injected", len(cases))
    assert not found, "\n".join(found)
