"""What the night takes out of the log, and what stays there until it is uploaded."""

import os
import time
from types import SimpleNamespace

import pytest

from pipelines.chain_snapshots import ChainSnapshots
from pipelines.keeping import drop_archived
from pipelines.run import keep, materialize
from pipelines.settings import PipelineSettings
from tests.builders import hotkey, write_metagraph
from tests.warehouse.builders import append, sample
from warehouse.archive import Archive
from warehouse.backends import open_outbox
from warehouse.files import LEFTOVER_AGE_SECONDS_MIN, temporary_beside
from warehouse.generation import Generations
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import SqliteLog


@pytest.fixture
def keeper(warehouse_settings):
    opened = SqliteKeeper(warehouse_settings)
    yield opened
    opened.close()


@pytest.fixture
def stores(tmp_path, warehouse_settings, keeper):
    """Three submissions, archived and published; everything is older than retention wants."""
    log = SqliteLog(warehouse_settings)
    for task in (1, 2, 3):
        append(log, sample(task=task))
    log.close()
    metagraph = write_metagraph(
        tmp_path / "metagraph.json", validators=[{"hotkey": hotkey("validator")}]
    )
    settings = PipelineSettings(chain_source=str(metagraph))
    materialize(settings, warehouse_settings)
    keep(settings, warehouse_settings)
    materialize(settings, warehouse_settings)
    return SimpleNamespace(
        settings=settings,
        warehouse=warehouse_settings.model_copy(update={"log_retention_days": -2}),
        log=keeper,
        archive=Archive(warehouse_settings),
        generations=Generations(warehouse_settings),
    )


def test_what_a_killed_writer_left_goes_from_every_place_when_it_is_old(stores):
    published, archive = stores.generations, stores.archive
    places = [
        published.pointer,
        published.stable_name,
        published.current().path,
        archive.directory / "manifest.json",
        archive.directory / archive.manifest().texts[0].file,
        ChainSnapshots(stores.warehouse).pointer,
    ]
    old, young = [], []
    for place in places:
        for left in (old, young):
            left.append(temporary_beside(place))
            left[-1].write_bytes(b"half")
    # As the link for analysts is made; the generation that it was to name has gone since.
    old[1].unlink()
    old[1].symlink_to("gone")
    before = time.time() - 2 * LEFTOVER_AGE_SECONDS_MIN
    for path in old:
        os.utime(path, (before, before), follow_symlinks=False)
    keep(stores.settings, stores.warehouse)
    assert set(stores.warehouse.warehouse_path.rglob(".*")) == set(young)
    assert all(place.exists() for place in places)


def test_without_object_storage_results_go_with_their_submissions(stores):
    assert drop_archived(stores) == 6
    assert stores.log.backlog(10).depth == 0
    assert stores.log.check() == []


def test_with_object_storage_nothing_goes_that_still_waits_for_it(stores):
    stores.warehouse = stores.warehouse.model_copy(update={"s3_samples_bucket": "samples"})
    assert drop_archived(stores) == 0
    outbox = open_outbox(stores.warehouse)
    claims = sorted(outbox.claim(3))
    outbox.done([claims[0], claims[2]])
    # The first is uploaded. The third is too, but a log only loses its beginning.
    assert drop_archived(stores) == 2
    assert stores.log.submitted(claims[1].submission_seq) is not None
    outbox.done([claims[1]])
    assert drop_archived(stores) == 4
    outbox.close()
    assert stores.log.check() == []
