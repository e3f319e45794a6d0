"""Every operation of a run on its disk fails in turn: readers have the old generation or the new.

A short selection by default; all operations, both ways and half done, where LEOMA_TORTURE=1.
"""

import shutil

import duckdb
import pytest

from pipelines.chain_snapshots import ChainSnapshots
from pipelines.metagraph import MetagraphError
from pipelines.recompute import recompute
from tests.faults.shim import CHANGES, read_journal, run_child
from tests.warehouse.builders import settings
from warehouse.archive import Archive, ArchiveError
from warehouse.export import differences
from warehouse.generation import GenerationError, Generations, archived_files, open_generation
from warehouse.log import LogError
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.tables import GENERATION

DRIVER = "tests.faults.publish_driver"
ERRORS = {"not_applied": "ENOSPC", "applied": "EIO", "torn": "ENOSPC"}
DAMAGE = (ArchiveError, GenerationError, MetagraphError, LogError, OSError, duckdb.Error)

COUNTS = """
    SELECT (SELECT count(*) FROM samples), (SELECT count(DISTINCT seq) FROM samples),
        (SELECT total_samples FROM generation)
"""

PUBLISHED, FAILED = "published", "failed"
# What the run must say, by what failed: nothing below the warehouse goes unnoticed. Of the log it
# only reads: SQLite's files beside it are made again where they are missing. What is kept for the
# next run is made again by that.
EXPECTED = {"log": {PUBLISHED, FAILED}, "tallies": {PUBLISHED}, "warehouse": {FAILED}}
# The directory is there, which is all that was wanted.
MADE_ANYWAY = ("mkdir", "applied")


class Runs:
    """Runs over the same warehouse, one for each case, and what they left behind."""

    def __init__(self, shim, directory):
        self.shim = shim
        self.root, self.work = directory / "disk", directory / "work"
        self.home = self.root / "home"
        self.root.mkdir(parents=True)
        self.work.mkdir()

    def run(self, cases, **task):
        return run_child(self.shim, self.root, self.work, DRIVER, cases=cases, **task)

    def put(self, left):
        """Have what a case left behind where it was made: views name files by their paths."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.work / left, self.home, symlinks=True)
        return self.home


def wrong_with(home, allowed, stable_allowed=None):
    """Say what is not whole in a warehouse, as somebody finds who has only its files.

    `allowed`: what the pointer may name. The link for analysts may lag where it is said.
    """
    warehouse = settings(home)
    generations, archive = Generations(warehouse), Archive(warehouse)
    try:
        current = generations.current()
        name = current.snapshot_id if current else None
        if name not in allowed:
            return f"the pointer names {name}, not one of {allowed}"
        if current is None:
            return None
        log = SqliteKeeper(warehouse)
        try:
            found = recompute(current, log, ChainSnapshots(warehouse)).differences
            found += tuple(log.check())
            manifest = archive.manifest()
            for part in manifest.parts():
                archive.content(part)
            through = min(manifest.watermark, manifest.submissions_watermark)
            found += tuple(differences(archive, log, through))
        finally:
            log.close()
        files = archived_files(current)
        if missing := [path for path in (*files.votes, *files.texts) if not path.exists()]:
            return f"{current.snapshot_id} names files that are not there: {missing}"
        with open_generation(current) as connection:
            counts = connection.execute(COUNTS).fetchall()[0]
        link = generations.stable_name
        stable = link.resolve().name.removesuffix(".duckdb") if link.exists() else None
        if stable not in (stable_allowed or allowed):
            return f"current.duckdb leads to {stable}"
    except DAMAGE as error:
        return f"{type(error).__name__}: {error}"
    if len(set(counts)) != 1:
        return f"{counts} samples: in the archive, distinct ones, and said by the generation"
    return "; ".join(found) or None


def digest(home):
    with open_generation(Generations(settings(home)).current()) as connection:
        return connection.table(GENERATION.name).select("tables_sha256").fetchall()[0][0]


class Undisturbed:
    """A run without faults: its operations, each with its number among those of its kind, the
    generation before it, and the digest of the one that it published.
    """

    def __init__(self, runs):
        self.runs = runs
        report = runs.run([None], journal=True)
        published = report["cases"][0]["first"][PUBLISHED]
        assert wrong_with(runs.put("after-0"), {published}) is None
        self.digest, self.before = digest(runs.home), report["before"]
        self.operations, counts = [], dict.fromkeys(CHANGES, 0)
        for operation in read_journal(runs.work / "journal-0"):
            if operation.kind in CHANGES:
                counts[operation.kind] += 1
                path = operation.other if operation.kind == "rename" else operation.path
                self.operations.append((operation.kind, counts[operation.kind], path))


@pytest.fixture(scope="module")
def undisturbed(shim, tmp_path_factory):
    return Undisturbed(Runs(shim, tmp_path_factory.mktemp("undisturbed")))


def is_generation_in_the_making(path):
    return "/generations/" in path and ".duckdb." in path


def cases_of(operations, *, is_torture):
    """Return a fault for each operation and each way, or one for each way: only writes can be torn.

    `operations`: the kind of each, and its number among those of its kind.
    """
    cases = []
    for turn, (mode, error) in enumerate(ERRORS.items(), 1):
        chosen = [one for one in operations if mode != "torn" or one[0] == "write"]
        # Each way at another point of the life.
        chosen = chosen if is_torture else [chosen[turn * len(chosen) // (len(ERRORS) + 1)]]
        cases += [
            {"nth": nth, "kinds": [kind], "mode": mode, "error": error} for kind, nth in chosen
        ]
    return cases


def wrong_of(undisturbed, cases):
    """Run the cases; return a line for each that broke something."""
    report, found = undisturbed.runs.run(cases), []
    for number, (case, outcome) in enumerate(zip(cases, report["cases"], strict=True)):
        wrong = wrong_with_case(undisturbed, number, case, outcome)
        if wrong:
            found.append(f"{case}, {outcome['hit']}: {wrong}")
    return found


def wrong_with_case(undisturbed, number, case, outcome):
    runs, before = undisturbed.runs, undisturbed.before
    if outcome["hit"] is None:
        return "the fault was never met"
    kind, path = outcome["hit"]
    said = PUBLISHED if PUBLISHED in outcome["first"] else FAILED
    place = next((one for one in EXPECTED if f"/{one}/" in path), "warehouse")
    allowed = EXPECTED[place] | ({PUBLISHED} if (kind, case["mode"]) == MADE_ANYWAY else set())
    if is_generation_in_the_making(path):
        # One that cannot be built upon the last one is built from nothing.
        allowed = {PUBLISHED, FAILED}
    if said not in allowed:
        return f"the run said {outcome['first']}"
    runs.put(f"after-{number}")
    if said == PUBLISHED:
        ids = {outcome["first"][PUBLISHED]}
    else:
        # The run may have failed after the pointer's rename: then the new one is in force.
        current = Generations(settings(runs.home)).current()
        ids = {before, *([current.snapshot_id] if current and current.snapshot_id > before else [])}
    if wrong := wrong_with(runs.home, ids):
        return f"after the fault: {wrong}"
    if PUBLISHED not in outcome["then"]:
        return f"the next run: {outcome['then']}"
    if wrong := wrong_with(runs.put(f"then-{number}"), {outcome["then"][PUBLISHED]}):
        return f"after the next run: {wrong}"
    return None if digest(runs.home) == undisturbed.digest else "other tables than undisturbed"


@pytest.mark.parametrize("is_in_the_making", [True, False], ids=["of the generation", "of others"])
def test_every_operation_of_a_run_may_fail(
    is_torture, undisturbed, is_in_the_making, record_property
):
    operations = [
        (kind, nth)
        for kind, nth, path in undisturbed.operations
        if is_generation_in_the_making(path) == is_in_the_making
    ]
    cases = cases_of(operations, is_torture=is_torture)
    record_property("faults injected", len(cases))
    found = wrong_of(undisturbed, cases)
    assert not found, "\n".join(found)
