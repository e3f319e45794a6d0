"""Where the metagraph comes from: the settings decide."""

from functools import partial
from typing import Protocol

from pipelines.chain import ChainNodes
from pipelines.chain_snapshots import ChainSnapshots
from pipelines.metagraph import Metagraph
from pipelines.metagraph_file import MetagraphFile
from pipelines.neurons import ChainState
from pipelines.settings import PipelineSettings


class ChainSource(Protocol):
    """Whatever tells who is in the subnet."""

    def sync(self) -> ChainState | Metagraph:
        """Read the chain now; raise `MetagraphError` when that fails in any way.

        A node gives a state whose miners nobody has judged, a file a whole metagraph.
        """

    def close(self) -> None:
        """Let go of all connections."""


def chain_source(settings: PipelineSettings, snapshots: ChainSnapshots) -> ChainSource:
    """Return the source that the settings name; nothing is read yet.

    Of several nodes none is believed that cannot follow the newest of the snapshots.
    """
    if settings.chain_endpoints:
        refuse_regress = partial(snapshots.refuse_regress, chain_genesis=settings.chain_genesis)
        return ChainNodes(settings, refuse_regress)
    return MetagraphFile(settings.chain_source, settings.netuid)
