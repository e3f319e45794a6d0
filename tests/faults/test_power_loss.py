"""The power fails after any operation; what was acknowledged before is on the disk, and whole.

Disks are made from the journal of a run: `power.Disk` says what is on one. At each point all that
was not synced is lost, or a random part of it. LEOMA_TORTURE=1 tries every point, many times.
"""

import itertools
import json

import pytest

from tests.faults.power import Disk, cuts
from tests.faults.shim import CHANGES, read_journal, run_child
from tests.faults.test_log_faults import READS
from tests.warehouse.builders import settings
from warehouse.sqlite_keeper import SqliteKeeper

DRIVER = "tests.faults.log_driver"


class Lives:
    """Services' lives on logs, their journals, and the disks that these lead to."""

    def __init__(self, shim, directory):
        self.shim = shim
        self.root, self.work, self.base, self.cut = (
            directory / name for name in ("disk", "work", "base", "cut")
        )
        for made in (self.root, self.work, self.base):
            made.mkdir(parents=True)

    def prepare(self):
        """Have the log's directory on the disk from the beginning."""
        (self.base / "log").mkdir()
        return self

    def live(self, *cases, **task):
        is_prepared = (self.base / "log").exists()
        task = {"reads": True, "journal": True, "prepared": is_prepared, **task}
        return run_child(self.shim, self.root, self.work, DRIVER, cases=cases or [None], **task)

    def losses(self, cuts_per_point, *, number=0, is_point, forgets_failed_syncs=False):
        """Cut the power after each operation that is a point; return what was wrong, and how many
        disks there were.
        """
        home = self.root / f"case-{number}"
        disk = Disk(home, self.base, forgets_failed_syncs=forgets_failed_syncs)
        acknowledged, found, count = {}, [], 0
        for position, operation in enumerate(read_journal(self.work / f"journal-{number}")):
            disk.do(operation)
            if operation.kind == "mark":
                told = json.loads(operation.path)
                acknowledged[told["signature"]] = acknowledged.get(told["signature"], {}) | told
            if not is_point(position, operation):
                continue
            for chance in cuts(position, cuts_per_point):
                disk.lose_power(self.cut, chance)
                count += 1
                found += [
                    f"after {position}, {operation.kind} {operation.path[-60:]}: {wrong}"
                    for wrong in wrong_after_power_loss(self.cut, acknowledged.values())
                ]
        return found, count


def every(stride):
    """Take every so many changes of the disk, and each acknowledgement."""
    return lambda position, operation: (
        operation.kind == "mark" or (operation.kind in CHANGES and position % stride == 0)
    )


def when_told(_, operation):
    """Take the moments at which a client has just heard that its samples are safe."""
    return operation.kind == "mark"


def wrong_after_power_loss(home, acknowledged):
    """Open the log as it is on this disk; say what is damaged or lost."""
    keeper = None
    try:
        keeper = SqliteKeeper(settings(home))
        found = keeper.check()
        rows = itertools.chain.from_iterable(keeper.submissions_between(0, keeper.head()))
        seqs = {row.signature.hex(): row.seq for row in rows}
    except Exception as error:  # noqa: BLE001  (a damaged file may answer anything)
        return [f"{type(error).__name__}: {error}"]
    finally:
        if keeper is not None:
            keeper.close()
    for told in acknowledged:
        seq = seqs.get(told["signature"])
        if seq is None or seq != told.get("seq", seq):
            found.append(f"lost: {told}")
    return found


@pytest.fixture
def lives(shim, tmp_path):
    return Lives(shim, tmp_path / "lives")


@pytest.mark.parametrize("reads", READS, ids=READS.get)
def test_the_log_survives_at_every_point(lives, is_torture, reads, record_property):
    lives.prepare().live(reads=reads)
    found, count = lives.losses(20 if is_torture else 2, is_point=every(1 if is_torture else 5))
    record_property("disks after a power cut", count)
    assert not found, "\n".join(found)
    assert count > 200


def test_a_new_log_survives_from_its_first_acknowledgement(lives):
    lives.live()
    found, _ = lives.losses(1, is_point=when_told)
    assert not found, "\n".join(found)


def test_the_simulation_notices_a_log_that_does_not_sync(lives):
    lives.prepare().live(lie=True)
    found, _ = lives.losses(1, is_point=every(15))
    assert any("lost" in one for one in found)
    assert any("malformed" in one or "damaged" in one for one in found)


@pytest.mark.parametrize(
    ("kind", "reads"),
    [
        ("sync", False),
        ("write", True),
        ("truncate", True),
        pytest.param("sync", True, marks=pytest.mark.torture),
        pytest.param("write", False, marks=pytest.mark.torture),
        pytest.param("truncate", False, marks=pytest.mark.torture),
    ],
    ids=lambda value: value if isinstance(value, str) else READS[value],
)
def test_what_is_told_after_a_failure_is_on_the_disk(
    lives, is_torture, kind, reads, record_property
):
    """What a failed sync left behind never comes to the disk, as on Linux: the repeat of a request
    is answered only when its own sync is done.
    """
    counted = lives.prepare().live(reads=reads)["cases"][0]["seen"][kind]
    stride = 1 if is_torture or kind != "write" else 23
    cases = [
        {"nth": nth, "kinds": [kind], "mode": "not_applied", "error": "EIO"}
        for nth in range(1, counted + 1, stride)
    ]
    failing = Lives(lives.shim, lives.root.parent / "failing").prepare()
    report = failing.live(*cases, reads=reads)
    found, disks = [], 0
    for number, (case, outcome) in enumerate(zip(cases, report["cases"], strict=True)):
        assert outcome["failure"] is None, case
        if is_ignored_by_sqlite(outcome["hit"]):
            continue
        wrong, count = failing.losses(
            0, number=number, is_point=when_told, forgets_failed_syncs=True
        )
        found += [f"{case}, {outcome['hit']}: {line}" for line in wrong]
        disks += count
    record_property("faults injected", len(cases))
    record_property("disks after a power cut", disks)
    assert not found, "\n".join(found)
    assert disks > len(cases)


def is_ignored_by_sqlite(hit):
    """Tell whether it was the sync of a directory, which SQLite asks for and does not look at.

    File systems of Linux write the name of a new file with the file's own sync, so the promise
    holds on them.
    """
    kind, path = hit
    return kind == "sync" and path.endswith("/log")


@pytest.mark.parametrize(
    "has_companion",
    [pytest.param(False, marks=pytest.mark.torture), True],
    ids=["alone", "with another process"],
)
def test_a_repeat_after_a_kill_is_answered_from_the_disk(shim, tmp_path, is_torture, has_companion):
    """The writer is killed between its last write and its sync, started again, and asked again."""
    counting = Lives(shim, tmp_path / "counting").prepare()
    counting.live()
    commits = syncs_of_commits(read_journal(counting.work / "journal-0"))
    found = []
    for nth in commits if is_torture else commits[1:2]:
        lives = Lives(shim, tmp_path / f"killed-{nth}").prepare()
        killed = {"nth": nth, "kinds": ["sync"], "mode": "killed", "error": "EIO"}
        lives.live(killed, is_killed=True)
        lives.live(has_companion=has_companion)
        wrong, _ = lives.losses(0, is_point=when_told)
        found += [f"killed at sync {nth}: {line}" for line in wrong]
    assert not found, "\n".join(found)


def syncs_of_commits(operations):
    """Return which syncs, from 1, are the last ones before an acknowledgement."""
    count, commits = 0, []
    for operation, following in itertools.pairwise(operations):
        count += operation.kind == "sync"
        if operation.kind == "sync" and following.kind == "mark":
            commits.append(count)
    return commits
