"""The demo's subnet as a simulated chain, Chutes and Hugging Face: a process of its own.

One neuron more than the metagraph file has: a miner that nobody judges, and that loses its place
when this process gets SIGUSR1.
"""

import signal
import threading
import time
from fractions import Fraction
from types import FrameType

import click

from cli import subnet
from cli.simulated.chain import SimulatedChain
from cli.simulated.node import SimulatedNode
from cli.simulated.services import SimulatedServices

BLOCK_SECONDS = 1.0
LEAVER = subnet.Miner("miner-leaver", 7, Fraction(1, 2), 4_446_000)


@click.command()
@click.option("--node-port", required=True, type=int)
@click.option("--services-port", required=True, type=int)
def serve(*, node_port: int, services_port: int) -> None:
    """Serve until SIGTERM, a block a second."""
    # Blocks are numbered by the clock: started again, the chain is never behind its last snapshot.
    chain = SimulatedChain(subnet.NETUID, first_block=int(time.time() / BLOCK_SECONDS))
    is_over, is_leaving = threading.Event(), threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        is_over.set()

    def leave(_number: int, _frame: FrameType | None) -> None:
        is_leaving.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGUSR1, leave)
    with SimulatedServices(services_port) as services:
        populate(chain, services)
        with SimulatedNode(chain, node_port) as node:
            click.echo(f"Chain {chain.genesis_hash} on {node.url}, services on {services.hf_url}")
            while not is_over.wait(BLOCK_SECONDS):
                if is_leaving.is_set():
                    is_leaving.clear()
                    chain.deregister(LEAVER.uid)
                    click.echo(f"Block {chain.number + 1}: {LEAVER.hotkey} is deregistered")
                chain.mine()


def populate(chain: SimulatedChain, services: SimulatedServices) -> None:
    """Register the demo's neurons, with their commitments, chutes and models, in one block."""
    miners = (*subnet.MINERS, LEAVER)
    by_uid: dict[int, subnet.Neuron] = {one.uid: one for one in (*subnet.VALIDATORS, *miners)}
    for uid in range(max(by_uid) + 1):
        neuron = by_uid.get(uid, subnet.ADMIN)
        stake = neuron.stake if isinstance(neuron, subnet.Validator) else 0
        chain.register(neuron.hotkey, stake, permit=stake > 0)
        if uid not in by_uid:
            chain.deregister(uid)  # an empty uid
    for miner in miners:
        model = subnet.model(miner)
        names = ("model_name", "model_revision", "chute_id")
        chain.reveal(miner.hotkey, {name: model[name] for name in names}, block=miner.block)
        services.add_chute(
            model["chute_id"], model["chute_slug"], miner.is_valid, model["model_revision"]
        )
        weights = {"model.safetensors": model["model_hash"]}
        services.add_model(model["model_name"], model["model_revision"], weights)
    chain.mine()


if __name__ == "__main__":
    serve()
