"""Syncs with a simulated node in a process of its own: `python -m tests.bench.syncs SYNCS`.

One JSON line: CPU seconds of the first sync, which connects and decodes metadata, and of each later
one (chain, verdicts, snapshot), and what many of them leave behind. The node's metadata is small;
decoding the real chain's takes about a second more, once a process.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from substrateinterface import Keypair

from cli.simulated.chain import SimulatedChain
from cli.simulated.node import SimulatedNode
from pipelines.chain import ChainNodes
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.evidence import Facts
from pipelines.judging import judged
from pipelines.settings import PipelineSettings
from pipelines.validation import ChuteFact, ModelFact
from warehouse.settings import WarehouseSettings

NEURONS = 256
REVISION = "a" * 40
WARM_UP_SYNCS = 20


def hotkeys():
    return [Keypair.create_from_uri(f"//bench{uid}").ss58_address for uid in range(NEURONS)]


def commitment(uid, hotkey):
    name = f"someone/leoma-{hotkey}"
    return {"model_name": name, "model_revision": REVISION, "chute_id": f"chute-{uid}"}


def facts(uid, hotkey, now_ms):
    name = commitment(uid, hotkey)["model_name"]
    digest = f"{uid:064x}"
    return Facts(
        ChuteFact(f"chute-{uid}", True, "slug", True, REVISION, now_ms),
        ModelFact(name, REVISION, True, REVISION, digest, now_ms),
        is_complete=True,
    )


def serve():
    """Serve a full subnet until stdin ends."""
    chain = SimulatedChain()
    for uid, hotkey in enumerate(hotkeys()):
        chain.register(hotkey, 6000)
        chain.reveal(hotkey, commitment(uid, hotkey))
    chain.mine(2)
    with SimulatedNode(chain) as node:
        print(node.url, flush=True)  # noqa: T201 - what its parent reads
        sys.stdin.read()


def measure(url, syncs, directory):
    now_ms = time.time_ns() // 1_000_000
    known = {hotkey: facts(uid, hotkey, now_ms) for uid, hotkey in enumerate(hotkeys())}
    settings = PipelineSettings(chain_source=url, chain_block_age_seconds_max=86_400)
    snapshots = ChainSnapshots(WarehouseSettings(leoma_home=directory))
    process, seconds = psutil.Process(), []
    before = None
    with contextlib.closing(ChainNodes(settings)) as source:
        for number in range(syncs):
            begun = time.process_time()
            last = snapshots.newest()
            state = source.sync()
            metagraph = judged(state, known, last and last.metagraph, now_ms)
            kept = snapshots.keep(metagraph, now_ms + number)
            seconds.append(time.process_time() - begun)
            if number == WARM_UP_SYNCS - 1:
                before = resources(process)
        after = resources(process)
    valid = metagraph.miners.filter("is_valid").height
    assert (len(state.neurons), valid) == (NEURONS, NEURONS), "the sync is not what it should be"
    return {
        "first_seconds": seconds[0],
        "seconds": seconds[1:],
        "before": before,
        "after": after,
        "snapshot_bytes": (snapshots.directory / kept.name).stat().st_size,
    }


def resources(process):
    return {
        "rss_mb": process.memory_info().rss / 2**20,
        "handles": process.num_fds(),
        "threads": process.num_threads(),
    }


def main():
    if sys.argv[1] == "serve":
        serve()
        return
    command = [sys.executable, "-m", "tests.bench.syncs", "serve"]
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ, text=True
        ) as node,
    ):
        try:
            url = node.stdout.readline().strip()
            measured = measure(url, int(sys.argv[1]), Path(directory))
            print(json.dumps(measured))  # noqa: T201 - what its parent reads
        finally:
            node.stdin.close()


if __name__ == "__main__":
    main()
