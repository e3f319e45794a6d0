"""A run is killed at any moment of its life: it published all or nothing, and the next one does.

A few kills by default, a hundred where LEOMA_TORTURE=1.
"""

import itertools
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from cli.processes import Processes, free_port, running_groups
from pipelines.run import keep, materialize
from pipelines.settings import PipelineSettings
from tests.builders import hotkey, write_metagraph
from tests.ledger import GIVE_UP_SECONDS, Audit, Publications, Validator, tell
from tests.leoma_serve import LeomaServe, spawned_by
from warehouse.archive import Archive
from warehouse.generation import Generations
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_keeper import SqliteKeeper

# By default, and as torture.
KILLS = {False: 2, True: 100}
KILLS_UNDER_DAGSTER = {False: 1, True: 100}
# Of the runs under Dagster: how many are killed in a row before one is let go.
IN_A_ROW = 4
VALIDATORS = ("v0", "v1")
BATCH = 4
PAUSE_SECONDS = 0.05
GRACE_SECONDS = 12
RUN_SECONDS = 4
OLD_SECONDS = 2 * 3_600


@dataclass(frozen=True)
class Service:
    """A warehouse with a first generation, and an API that two validators submit to."""

    settings: PipelineSettings
    warehouse: WarehouseSettings
    audit: Audit
    publications: Publications

    def environment(self):
        """Return the settings of the processes that make tables."""
        home = self.warehouse.leoma_home
        return {
            **os.environ,
            "LEOMA_HOME": str(home),
            "DAGSTER_HOME": str(home / "dagster"),
            "CHAIN_SOURCE": self.settings.chain_source,
            "SCORER_TASK_WINDOW": str(self.settings.scorer_task_window),
            "SENSOR_INTERVAL_SECONDS": "1",
            # What else runs on this machine shall not hold up a run for ever.
            "RUN_NICE": "0",
        }

    def head(self):
        log = SqliteKeeper(self.warehouse)
        try:
            return log.head()
        finally:
            log.close()


@pytest.fixture
def service(tmp_path, warehouse_settings):
    metagraph = write_metagraph(
        tmp_path / "metagraph.json",
        validators=[{"hotkey": hotkey(name)} for name in VALIDATORS],
        miners=[{"hotkey": hotkey(f"m{number}")} for number in range(BATCH)],
    )
    settings = PipelineSettings(chain_source=str(metagraph), scorer_task_window=5)
    materialize(settings, warehouse_settings)
    api = LeomaServe(warehouse_settings.leoma_home)
    validators = [Validator(name, api.url, batch=BATCH) for name in VALIDATORS]
    audit, publications = Audit(warehouse_settings, validators), Publications(warehouse_settings)
    api.start()
    try:
        api.wait_until_ready()
        yield Service(settings, warehouse_settings, audit, publications)
    finally:
        api.kill()
        for validator in validators:
            validator.close()


def names_below(directory):
    return {path for path in directory.rglob("*") if not path.name.endswith("lock")}


class Lives:
    """Runs as processes, killed after a share of their life or of the part of it that writes."""

    def __init__(self, environment, warehouse, validators):
        self.environment, self.warehouse = environment, warehouse
        self.turns = itertools.cycle(validators)
        # As long as the last one that was not killed took.
        self.seconds = {"from the start": GIVE_UP_SECONDS, "from the first write": GIVE_UP_SECONDS}

    def live(self, since, share):
        """Start a run, submit samples while it lives, and kill it; tell whether it came to that."""
        names = names_below(self.warehouse)
        begun = {"from the start": time.monotonic()}
        command = [sys.executable, "-m", "cli.main", "materialize"]
        with subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL) as run:
            while run.poll() is None:
                if len(begun) == 1 and names_below(self.warehouse) != names:
                    begun["from the first write"] = time.monotonic()
                if self._age(begun, since) > share * self.seconds[since]:
                    run.kill()
                    break
                next(self.turns).submit()
                time.sleep(PAUSE_SECONDS)
            if is_killed := run.wait() != 0:
                assert run.returncode == -9
            else:
                self.seconds = {which: self._age(begun, which) for which in self.seconds}
        return is_killed

    @staticmethod
    def _age(begun, since):
        return time.monotonic() - begun[since] if since in begun else 0


def test_a_killed_run_has_published_all_or_nothing_and_the_next_one_publishes(
    service, moments, is_torture, record_property
):
    warehouse, publications = service.warehouse.warehouse_path, service.publications
    publications.look()
    lives = Lives(service.environment(), warehouse, service.audit.validators)
    assert not lives.live("from the start", 1), "nobody killed it"
    kills = after_writes = after_publication = 0
    for since in itertools.cycle(lives.seconds):
        if kills == KILLS[is_torture]:
            break
        before, names = publications.watermark(), names_below(warehouse)
        if not lives.live(since, moments.random()):
            continue
        kills += 1
        after_writes += names_below(warehouse) != names
        after_publication += publications.look() > before
        service.audit.look()
        published = materialize(service.settings, service.warehouse)
        assert published.watermark == service.head()
        # That it is whole is looked at after the next kill.
        assert publications.watermark() == published.watermark
    publications.look()
    service.audit.close()
    nothing_is_left_over(service)
    publications.look()
    of_them = {
        "of them after the first write": after_writes,
        "of them after the publication": after_publication,
    }
    tell(record_property, kills=kills, **of_them, **service.audit.figures())


def nothing_is_left_over(service):
    """See that the nightly work removes what killed runs left, once it is old enough."""
    # What compaction merges goes in the night after.
    for _ in range(2):
        old = time.time() - OLD_SECONDS
        for path in service.warehouse.warehouse_path.rglob("*"):
            os.utime(path, (old, old), follow_symlinks=False)
        keep(service.settings, service.warehouse)
    generations, archive = Generations(service.warehouse), Archive(service.warehouse)
    kept = generations.kept()
    assert set(generations.directory.glob("*.duckdb")) == {one.path for one in kept}
    named = {archive.directory / part.file for part in archive.manifest().parts()}
    named |= {path for one in kept for path in generations.archive_files(one)}
    assert set(archive.directory.rglob("*.parquet")) <= named
    assert list(service.warehouse.warehouse_path.rglob(".*")) == []


class Dagster:
    """Code server and daemon, as in a deployment."""

    def __init__(self, processes):
        port = str(free_port(0))
        cli = ["-m", "cli.main", "dagster"]
        self.code = processes.start("code-server", [*cli, "code-server", "--port", port])
        processes.start("daemon", [*cli, "daemon", "--code-port", port])
        self.processes = processes
        # As long as the last run that was not killed took.
        self.run_seconds = RUN_SECONDS

    def wait_until(self, what, is_so):
        self.processes.wait_until(self.code, what, is_so, GIVE_UP_SECONDS)

    def runs(self):
        return spawned_by(self.code.process.pid)

    def kill_one(self, share):
        """Wait for a run and kill it after a share of its life; tell whether it came to that."""
        found = []
        self.wait_until("a run begins", lambda: found.extend(self.runs()) or found)
        run = found[0]
        time.sleep(share * self.run_seconds)
        if is_alive := run in self.runs():
            run.kill()
        return is_alive

    def let_one_go(self, has_published):
        """Wait for a run that nobody kills."""
        self.wait_until("a run begins", self.runs)
        begun = time.monotonic()
        self.wait_until("it publishes and ends", lambda: has_published() and not self.runs())
        self.run_seconds = time.monotonic() - begun


def test_runs_under_dagster_are_killed_and_the_sensor_has_the_next_one_publish(
    service, moments, is_torture, tmp_path, record_property
):
    kills, goal = 0, KILLS_UNDER_DAGSTER[is_torture]
    audit, publications = service.audit, service.publications
    turns = itertools.cycle(audit.validators)
    with Processes(tmp_path, service.environment(), GRACE_SECONDS) as processes:
        dagster = Dagster(processes)
        while kills < goal:
            # Something new: the same is asked for again only after a minute.
            next(turns).submit()
            kills += dagster.kill_one(moments.random())
            publications.look()
            audit.look()
            if kills % IN_A_ROW == 0 or kills == goal:
                next(turns).submit()
                head = service.head()
                dagster.let_one_go(lambda: publications.watermark() == head)  # noqa: B023
                publications.look()
        groups = {child.process.pid for child in processes.children}
    assert not groups & running_groups(), "a killed run has left something running"
    audit.close()
    tell(record_property, kills=kills, **audit.figures())
