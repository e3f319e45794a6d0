"""Syncs with a simulated node in a process of its own: `python -m tests.bench.syncs SYNCS`.

One JSON line: CPU seconds of the first sync, which connects, decodes metadata and asks about all
models, and of each later one (chain, Chutes, verdicts, snapshot), and what many of them leave
behind. The services are simulated in that process, too. The node's metadata is small; decoding the
real chain's takes about a second more, once a process.
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
from cli.simulated.services import SimulatedServices
from pipelines.chain import ChainNodes
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.judging import judged
from pipelines.settings import PipelineSettings
from pipelines.syncing import gathered
from warehouse.settings import WarehouseSettings

NEURONS = 256
REVISION = "a" * 40
WARM_UP_SYNCS = 20


def hotkeys():
    return [Keypair.create_from_uri(f"//bench{uid}").ss58_address for uid in range(NEURONS)]


def commitment(uid, hotkey):
    name = f"someone/leoma-{hotkey}"
    return {"model_name": name, "model_revision": REVISION, "chute_id": f"chute-{uid}"}


def serve():
    """Serve a full subnet until stdin ends."""
    chain = SimulatedChain()
    for uid, hotkey in enumerate(hotkeys()):
        chain.register(hotkey, 6000)
        chain.reveal(hotkey, commitment(uid, hotkey))
    chain.mine(2)
    with SimulatedNode(chain) as node, SimulatedServices() as services:
        for uid, hotkey in enumerate(hotkeys()):
            said = commitment(uid, hotkey)
            services.add_chute(said["chute_id"], "slug", True, REVISION)
            services.add_model(said["model_name"], REVISION, {"model.safetensors": f"{uid:064x}"})
        places = [node.url, services.chutes_url, services.hf_url]
        print(json.dumps(places), flush=True)  # noqa: T201 - what its parent reads
        sys.stdin.read()


def measure(places, syncs, directory):
    settings = PipelineSettings(
        chain_source=places[0],
        chutes_api_url=places[1],
        hf_endpoint=places[2],
        chain_block_age_seconds_max=86_400,
    )
    snapshots = ChainSnapshots(WarehouseSettings(leoma_home=directory))
    process, seconds = psutil.Process(), []
    before = None
    with contextlib.closing(ChainNodes(settings)) as source:
        for number in range(syncs):
            begun = time.process_time()
            last = snapshots.newest()
            now_ms = time.time_ns() // 1_000_000
            state = source.sync()
            evidence = gathered(settings, state, last and last.metagraph)
            metagraph = judged(state, evidence.facts, last and last.metagraph, now_ms)
            kept = snapshots.keep(metagraph, now_ms)
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
            places = json.loads(node.stdout.readline())
            measured = measure(places, int(sys.argv[1]), Path(directory))
            print(json.dumps(measured))  # noqa: T201 - what its parent reads
        finally:
            node.stdin.close()


if __name__ == "__main__":
    main()
