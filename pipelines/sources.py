"""Where the metagraph comes from: the settings decide."""

from typing import Protocol

from pipelines.metagraph import Metagraph, MetagraphError
from pipelines.metagraph_file import MetagraphFile
from pipelines.settings import PipelineSettings


class ChainSource(Protocol):
    """Whatever tells the metagraph."""

    def sync(self) -> Metagraph:
        """Read the metagraph now; raise `MetagraphError` when that fails in any way."""


def chain_source(settings: PipelineSettings) -> ChainSource:
    """Return the source that the settings name; nothing is read yet."""
    if settings.chain_endpoints:
        raise MetagraphError(
            "CHAIN_SOURCE: reading from a node (ws://, wss://) is not finished; give the path of a "
            "metagraph file"
        )
    return MetagraphFile(settings.chain_source, settings.netuid)
