"""Every operation of the nightly work on its disk fails in turn: nothing leaves the log that is not
in the archive, and the next night makes up for it.

A short selection by default; all operations, both ways and half done, where LEOMA_TORTURE=1.
"""

import itertools

import pytest

from tests.faults.shim import CHANGES, read_journal, run_child
from tests.faults.test_publish_faults import DAMAGE, Runs, cases_of
from tests.warehouse.builders import settings
from warehouse.archive import Archive
from warehouse.export import differences
from warehouse.generation import Generations, open_generation
from warehouse.sqlite_keeper import SqliteKeeper

DRIVER = "tests.faults.keep_driver"
SAMPLES = "SELECT count(*), count(DISTINCT seq), count(prompt) FROM samples"


class Nights(Runs):
    """Nightly work over the same warehouse, once for each case."""

    def run(self, cases, **task):
        return run_child(self.shim, self.root, self.work, DRIVER, cases=cases, **task)

    def state(self, left):
        """Return what a warehouse holds, and what the night made of it; raises where it is torn."""
        warehouse = settings(self.put(left))
        archive, generations, log = (
            Archive(warehouse),
            Generations(warehouse),
            SqliteKeeper(warehouse),
        )
        try:
            manifest = archive.manifest()
            through = min(manifest.watermark, manifest.submissions_watermark)
            wrong = [*log.check(), *differences(archive, log, through)]
            for part in manifest.parts():
                archive.content(part)
            signatures = {
                signature
                for part in manifest.submissions
                for signature in archive.read(part)["signature"].to_list()
            }
            rows = itertools.chain.from_iterable(log.submissions_between(0, log.head()))
            signatures |= {row.signature for row in rows}
            waiting = log.oldest_waiting_submission()
            if waiting is not None and log.submitted(waiting) is None:
                wrong.append(f"the result of submission {waiting} waits, which is gone")
            with open_generation(generations.current()) as connection:
                samples = connection.execute(SAMPLES).fetchall()[0]
            holds = {
                "wrong": wrong,
                "head": log.head(),
                "signatures": signatures,
                "votes": archive.votes(manifest).sort("seq").rows(),
                "samples": samples,
                "current": generations.current().snapshot_id,
            }
            made = {
                "dropped_through": log.dropped_through(),
                "texts": [(part.first_seq, part.last_seq, part.rows) for part in manifest.texts],
                "submissions": [(part.first_seq, part.rows) for part in manifest.submissions],
                "generations": [one.snapshot_id for one in generations.kept()],
                "waiting": log.backlog(99).depth,
            }
        finally:
            log.close()
        return holds, made


class Undisturbed:
    def __init__(self, nights):
        self.nights = nights
        report = nights.run([None], journal=True)
        assert report["cases"][0]["first"] == {"kept": True}
        self.holds, before = nights.state("base")
        holds, self.made = nights.state("after-0")
        assert holds == self.holds
        assert self.holds["wrong"] == []
        # There was something to do for each part of it.
        assert before["dropped_through"] == 0 < self.made["dropped_through"]
        for name in ("texts", "submissions", "generations", "waiting"):
            assert self.made[name] != before[name], name
        counts = dict.fromkeys(CHANGES, 0)
        self.operations = []
        for operation in read_journal(nights.work / "journal-0"):
            if operation.kind in CHANGES:
                counts[operation.kind] += 1
                self.operations.append((operation.kind, counts[operation.kind]))


@pytest.fixture(scope="module")
def undisturbed(shim, tmp_path_factory):
    return Undisturbed(Nights(shim, tmp_path_factory.mktemp("nights")))


def wrong_with_case(undisturbed, number, outcome):
    if outcome["hit"] is None:
        return "the fault was never met"
    nights = undisturbed.nights
    try:
        holds, made = nights.state(f"after-{number}")
        if holds != undisturbed.holds:
            changed = [name for name in holds if holds[name] != undisturbed.holds[name]]
            return f"after the fault: {changed}, {holds['wrong']}"
        if outcome["then"] != {"kept": True}:
            return f"the next night: {outcome['then']}"
        holds, made = nights.state(f"then-{number}")
        if holds != undisturbed.holds:
            return f"after the next night: {holds['wrong']}"
    except DAMAGE as error:
        return f"{type(error).__name__}: {error}"
    changed = {name: made[name] for name in made if made[name] != undisturbed.made[name]}
    return f"the next night left something to do: {changed}" if changed else None


def test_every_operation_of_a_night_may_fail(is_torture, undisturbed, record_property):
    cases = cases_of(undisturbed.operations, is_torture=is_torture)
    report, found = undisturbed.nights.run(cases), []
    for number, (case, outcome) in enumerate(zip(cases, report["cases"], strict=True)):
        if wrong := wrong_with_case(undisturbed, number, outcome):
            found.append(f"{case}, {outcome['hit']}, {outcome['first']}: {wrong}")
    record_property("faults injected", len(cases))
    assert not found, "\n".join(found)
