"""Every operation of `leoma restore` on the disk fails in turn: the same command brings the machine
up, and before that nothing half restored is served.

From a real S3 server. A short selection by default; all operations where LEOMA_TORTURE=1.
"""

import shutil

import pytest

from pipelines.chain_snapshots import ChainSnapshots
from tests.faults.shim import CHANGES, read_journal, run_child
from tests.faults.test_publish_faults import DAMAGE, Runs, cases_of
from tests.pipelines.test_assets import Subnet
from tests.warehouse.builders import append, hotkey, request, sample, settings
from warehouse.archive import Archive
from warehouse.generation import Generations, open_generation
from warehouse.log import LogError
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import SqliteLog

DRIVER = "tests.faults.restore_driver"
OLDER_RECORDS = 4
TABLES = "SELECT tables_sha256, winner_hotkey, latest_task_id, total_samples FROM generation"


class Restores(Runs):
    """Machines brought up from one bucket, onto nothing or beside an older log."""

    def __init__(self, shim, directory, object_server):
        super().__init__(shim, directory)
        bucket = object_server.make_bucket()
        there = object_server.settings(directory / "lost", warehouse_url=f"s3://{bucket}/leoma")
        subnet = Subnet(directory, there)
        subnet.vote_all("old", 3)
        subnet.vote_all("young", 5)
        subnet.log.announce_task(request("admin", {"task_id": 5}, "/tasks"), 5).result(30)
        added = request("admin", {"hotkey": hotkey("poor"), "reason": "copies"}, "/blacklist")
        subnet.log.add_to_blacklist(added, hotkey("poor"), "copies").result(30)
        subnet.run()
        self.expected = {
            "tables": tables(there),
            "admin": subnet.log.admin_state(),
            "snapshot": ChainSnapshots(there).newest_name(),
            "wrong": [],
        }
        self.head = subnet.log.head()
        subnet.log.close()
        self.command = ["restore", "--from", there.warehouse_url]
        self.environment = {
            "S3_ENDPOINT_URL": there.s3_endpoint_url,
            "S3_READ_ACCESS_KEY_ID": there.s3_read_access_key_id,
            "S3_READ_SECRET_ACCESS_KEY": there.s3_read_secret_access_key.get_secret_value(),
            "S3_CONCURRENCY_MAX": "1",
        }
        self.older_log = directory / "older"
        self._make_older_log(directory / "other")

    def _make_older_log(self, home):
        """Copied as it is while a service has it: the newest is in the WAL."""
        log = SqliteLog(settings(home))
        for task in range(OLDER_RECORDS // 2):
            append(log, sample(task=task))
        shutil.copytree(home / "log", self.older_log)
        log.close()

    def restore(self, cases, *, is_beside, **task):
        return run_child(
            self.shim,
            self.root,
            self.work,
            DRIVER,
            cases=cases,
            command=[*self.command, *(["--new-log"] if is_beside else [])],
            environment=self.environment,
            older_log=str(self.older_log) if is_beside else None,
            **task,
        )["cases"]

    def operations(self, *, is_beside):
        # Of the other way there may be one.
        (self.work / "journal-0").unlink(missing_ok=True)
        (case,) = self.restore([None], is_beside=is_beside, journal=True)
        assert case["first"][0] == 0, case
        assert self.wrong(self.put("after-0"), is_beside=is_beside) is None
        counts, found = dict.fromkeys(CHANGES, 0), []
        for operation in read_journal(self.work / "journal-0"):
            if operation.kind in CHANGES:
                counts[operation.kind] += 1
                found.append((operation.kind, counts[operation.kind]))
        return found

    def wrong(self, home, *, is_beside):
        """Say what is not as on the lost machine, but for the gap in its log."""
        here = settings(home)
        log, archive = SqliteKeeper(here), Archive(here)
        try:
            manifest = archive.manifest()
            for part in manifest.parts():
                archive.content(part)
            found = {
                "tables": tables(here),
                "admin": log.admin_state(),
                "snapshot": ChainSnapshots(here).newest_name(),
                "wrong": log.check(),
            }
            if not log.head() == log.dropped_through() == manifest.watermark > self.head:
                return f"{log.head()}, {log.dropped_through()}, {manifest.watermark}"
        finally:
            log.close()
        changed = {name: found[name] for name in found if found[name] != self.expected[name]}
        return str(changed) if changed else self.wrong_aside(home, is_beside=is_beside)

    @staticmethod
    def wrong_aside(home, *, is_beside):
        """Look for the older log, which may have what nobody else has."""
        if not is_beside:
            return None
        directory = settings(home).log_path.parent
        aside = [path for path in directory.glob("*.before-restore-*") if path.suffix[-1].isdigit()]
        heads = []
        for path in [*aside, settings(home).log_path]:
            if path.exists():
                keeper = SqliteKeeper(settings(home, log_url=f"sqlite:///{path}"))
                heads.append(keeper.head())
                keeper.close()
        return None if OLDER_RECORDS in heads else f"the older log is gone: {heads}"

    def wrong_half(self, home, *, is_beside):
        """What is served is served whole, or nothing is."""
        here = settings(home)
        if Generations(here).current() is not None:
            return self.wrong(home, is_beside=is_beside)
        return self.wrong_aside(home, is_beside=is_beside)


def tables(here):
    current = Generations(here).current()
    with open_generation(current) as connection:
        return current.snapshot_id, connection.execute(TABLES).fetchall()


@pytest.fixture(scope="module")
def restores(shim, tmp_path_factory, object_server):
    return Restores(shim, tmp_path_factory.mktemp("restores"), object_server)


@pytest.mark.parametrize(
    "is_beside",
    [pytest.param(False, marks=pytest.mark.torture), True],
    ids=["onto nothing", "beside an older log"],
)
def test_every_operation_of_a_restore_may_fail(restores, is_torture, is_beside, record_property):
    cases = cases_of(restores.operations(is_beside=is_beside), is_torture=is_torture)
    found = []
    outcomes = restores.restore(cases, is_beside=is_beside)
    for number, (case, outcome) in enumerate(zip(cases, outcomes, strict=True)):
        wrong = wrong_with(restores, number, outcome, is_beside=is_beside)
        if wrong:
            found.append(f"{case}, {outcome['hit']}, {outcome['first']}: {wrong}")
    record_property("faults injected", len(cases))
    assert not found, "\n".join(found)


def wrong_with(restores, number, outcome, *, is_beside):
    if outcome["hit"] is None:
        return "the fault was never met"
    code, said = outcome["first"]
    if code not in {0, 1} or "Traceback" in said or (code and "Error: " not in said):
        return "it did not end with a sentence"
    try:
        after = restores.put(f"after-{number}")
        look = restores.wrong_half if code else restores.wrong
        if wrong := look(after, is_beside=is_beside):
            return f"after the fault: {wrong}"
        if outcome["then"][0]:
            return f"the same command: {outcome['then']}"
        wrong = restores.wrong(restores.put(f"then-{number}"), is_beside=is_beside)
    except (*DAMAGE, LogError) as error:
        return f"{type(error).__name__}: {error}"
    return f"after the same command: {wrong}" if wrong else None
