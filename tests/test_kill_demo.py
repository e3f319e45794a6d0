"""The demo as a whole is killed at any moment and started again on the same home, until it ends.

A kill by default, a hundred where LEOMA_TORTURE=1: a life of it takes ten seconds.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cli import subnet
from tests.ledger import Audit, Crowd, Publications, Validator, tell
from tests.leoma_serve import lasting_port, running_in

# By default, and as torture.
KILLS = {False: 1, True: 100}
TASKS = 6
STAGES = (
    "Demo in",
    "Reading the subnet",
    "Starting the API",
    "Tasks ",
    "Waiting for Dagster",
    "Checked: ",
    "Serving until Ctrl-C",
)
STAGE_SECONDS = 2.5
ALL, WATCHER, WATCHER_AND_GO_ON = "all", "the watcher", "the watcher, the next one begins at once"
WAYS = (ALL, WATCHER, WATCHER_AND_GO_ON)
SECONDS_MAX = 240
# Another validator's samples, beside those that the demo submits for its own.
VALIDATORS = tuple(neuron.uri.removeprefix("//") for neuron in subnet.VALIDATORS[:2])
BATCH = 5
PAUSE_SECONDS = 0.3
# Two demos that begin at once would find the same preferred port free.
DEMO = "import cli.demo; cli.demo.CODE_PORT = {}; from cli.main import main; main()"


class Demo:
    """`leoma demo`, again and again on the same home and the same ports."""

    def __init__(self, home, directory):
        self.home, self.directory = home, directory
        self.api_port, self.dagster_port, self.code_port = (lasting_port() for _ in range(3))
        self.environment = {
            **os.environ,
            "LEOMA_HOME": str(home),
            "SENSOR_INTERVAL_SECONDS": "1",
            # What else runs on this machine shall not hold up a run for ever.
            "RUN_NICE": "0",
        }
        self.lives = itertools.count(1)
        self.process = self.output = None

    @property
    def url(self):
        """Where its API is: it moves when the last one's has not given up the port yet."""
        moved = re.search(r"The API listens on (\d+) instead", self.said())
        return f"http://127.0.0.1:{moved[1] if moved else self.api_port}"

    def start(self):
        self.output = self.directory / f"demo-{next(self.lives)}.txt"
        ports = ["--api-port", str(self.api_port), "--dagster-port", str(self.dagster_port)]
        command = [sys.executable, "-c", DEMO.format(self.code_port), "demo", *ports]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--tasks", str(TASKS)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    def said(self):
        return self.output.read_text(errors="replace")

    def wait_for(self, stage):
        deadline = time.monotonic() + SECONDS_MAX
        while stage not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def kill_watcher(self):
        """Kill the one process that watches all others: these end by themselves."""
        self.process.kill()
        self.process.wait()

    def kill_all(self):
        """Kill everything at once, as a power cut would."""
        groups = set()
        for one in [self.process, *psutil.Process(self.process.pid).children(recursive=True)]:
            with contextlib.suppress(ProcessLookupError):
                groups.add(os.getpgid(one.pid))
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self.process.wait()

    def wait_until_gone(self):
        deadline = time.monotonic() + SECONDS_MAX
        while left := running_in(self.home):
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.05)

    def end(self):
        """End whatever a failed test has left."""
        for one in running_in(self.home):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


@pytest.fixture
def demo(home, tmp_path):
    made = Demo(home, tmp_path)
    try:
        yield made
    finally:
        made.end()


def test_a_demo_that_is_killed_goes_on_where_it_was(
    demo, warehouse_settings, moments, is_torture, record_property
):
    kills = KILLS[is_torture]
    # A whole life beforehand takes too long where there is only one.
    stages = STAGES if is_torture else STAGES[:4]
    validators = [Validator(name, "", batch=BATCH, series="own-") for name in VALIDATORS]
    audit, publications = Audit(warehouse_settings, validators), Publications(warehouse_settings)

    def start():
        demo.start()
        # Before any API is up: the last life's may still be about to end.
        demo.wait_for("Demo in")
        for validator in validators:
            validator.url = demo.url

    start()
    ways = itertools.cycle(moments.sample(WAYS, len(WAYS)))
    with Crowd(validators, PAUSE_SECONDS):
        for way in itertools.islice(ways, kills):
            demo.wait_for(moments.choice(stages))
            time.sleep(moments.random() * STAGE_SECONDS)
            if way == ALL:
                demo.kill_all()
            else:
                demo.kill_watcher()
            if way != WATCHER_AND_GO_ON:
                demo.wait_until_gone()
            publications.look()
            audit.look()
            start()
        demo.wait_for(STAGES[-1])
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(SECONDS_MAX) == 0, demo.said()
    demo.wait_until_gone()
    publications.look()
    audit.close()
    periods = json.loads((demo.home / "demo" / "tasks.json").read_text())
    # What was begun is played to its end before anything new.
    assert all(period["is_played"] for period in periods)
    assert {period["last"] - period["first"] + 1 for period in periods} == {TASKS}
    tell(record_property, kills=kills, **audit.figures())
