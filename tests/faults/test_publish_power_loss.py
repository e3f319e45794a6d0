"""The power fails during a run and after it: the pointer names a generation that is whole."""

import json

import pytest

from tests.faults.power import Disk, cuts
from tests.faults.shim import CHANGES, read_journal
from tests.faults.test_publish_faults import PUBLISHED, Runs, wrong_with


class Journaled:
    """One run over a warehouse with a generation, and the disks that its journal leads to."""

    def __init__(self, shim, directory, **task):
        self.runs = Runs(shim, directory)
        report = self.runs.run([None], journal=True, **task)
        self.published = report["cases"][0]["first"][PUBLISHED]
        self.before = report["before"]

    def losses(self, cuts_per_point, stride, **model):
        """Cut the power at every `stride`th change; return what was wrong, and how many disks."""
        disk = Disk(self.runs.home, self.runs.work / "base", **model)
        allowed, found, count = {self.before, self.published}, [], 0
        for position, operation in enumerate(read_journal(self.runs.work / "journal-0")):
            disk.do(operation)
            if operation.kind == "mark":
                # The run has told that it published: from here the old one is not enough.
                assert json.loads(operation.path) == {PUBLISHED: self.published}
                allowed = {self.published}
            elif operation.kind not in CHANGES or position % stride:
                continue
            for chance in cuts(position, cuts_per_point):
                disk.lose_power(self.runs.home, chance)
                count += 1
                if wrong := wrong_with(self.runs.home, allowed, {self.before, self.published}):
                    found.append(f"after {position}, {operation.kind} {operation.path}: {wrong}")
        return found, count


@pytest.fixture(scope="module")
def journaled(shim, tmp_path_factory):
    return Journaled(shim, tmp_path_factory.mktemp("journaled"))


def test_a_published_generation_survives_at_every_point(journaled, is_torture, record_property):
    found, count = journaled.losses(
        10 if is_torture else 1, 1 if is_torture else 7, keeps_paths=True
    )
    record_property("disks after a power cut", count)
    assert not found, "\n".join(found)
    assert count > 20


@pytest.mark.parametrize(
    "from_nothing",
    [False, pytest.param(True, marks=pytest.mark.torture)],
    ids=["new partition", "from nothing"],
)
def test_it_survives_where_a_sync_keeps_no_more_than_it_must(
    shim, tmp_path, journaled, is_torture, from_nothing
):
    if from_nothing:
        journaled = Journaled(shim, tmp_path / "first", from_nothing=True)
    found, _ = journaled.losses(0, 4 if is_torture else 7)
    assert not found, "\n".join(found)


@pytest.mark.torture
def test_the_first_generation_survives(shim, tmp_path):
    first = Journaled(shim, tmp_path / "first", from_nothing=True)
    found, _ = first.losses(3, 1, keeps_paths=True)
    assert not found, "\n".join(found)


@pytest.mark.torture
def test_the_simulation_notices_a_run_that_does_not_sync(shim, tmp_path):
    found, _ = Journaled(shim, tmp_path / "lying", lie=True).losses(0, 8, keeps_paths=True)
    assert found
