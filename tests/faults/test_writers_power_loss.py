"""The power fails while two services append to one log and a courier works through its outbox.

All three write one journal, in the true order. LEOMA_TORTURE=1 tries every point, many times.
"""

import itertools
import json

import pytest

from tests.faults.shim import read_journal, run_child
from tests.faults.test_power_loss import Lives, every

DRIVER = "tests.faults.writers_driver"
TURNS_MIN = 4


class Races(Lives):
    """Several processes' lives on one log."""

    def race(self, **task):
        """Return the journal's marks: who acknowledged what, in order."""
        signatures = run_child(self.shim, self.root, self.work, DRIVER, **task)["signatures"]
        journal = read_journal(self.work / "journal-0")
        told = [json.loads(one.path)["signature"] for one in journal if one.kind == "mark"]
        assert sorted(told) == sorted(signatures)
        return [signatures.index(one) % 2 for one in told]


def test_what_several_processes_acknowledged_survives(shim, tmp_path, is_torture, record_property):
    races = Races(shim, tmp_path / "races").prepare()
    writers = races.race()
    # They took turns, or it would be the life of one after the other.
    assert sum(one != other for one, other in itertools.pairwise(writers)) >= TURNS_MIN
    found, count = races.losses(6 if is_torture else 1, is_point=every(1 if is_torture else 17))
    record_property("disks after a power cut", count)
    assert not found, "\n".join(found)
    assert count > 60


@pytest.mark.torture
def test_the_simulation_notices_writers_that_do_not_sync(shim, tmp_path):
    races = Races(shim, tmp_path / "races").prepare()
    races.race(lie=True)
    found, _ = races.losses(0, is_point=every(29))
    assert any("lost" in one for one in found)
