"""Chain snapshots: each metagraph that was read, kept for ever in a file of its own.

With the log they are all that tables are made from. A snapshot is one Parquet file in the columns
of `NEURONS`, named by its block and the SHA-256 of its bytes, so that a damaged one is told before
it is parsed (Polars dies of some). The pointer names the newest, and when it was read.
"""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipelines.frames import violations
from pipelines.metagraph import Metagraph, MetagraphError
from warehouse.clock import is_ahead
from warehouse.files import locked, make_directory, write_durably
from warehouse.settings import WarehouseSettings
from warehouse.tables import NEURONS

SUFFIX = ".parquet"
DIGEST_DIGITS = 16
NAME = re.compile(rf"\d{{1,20}}-[0-9a-f]{{{DIGEST_DIGITS}}}\{SUFFIX}", re.ASCII)
COMPRESSION_LEVEL = 9


@dataclass(frozen=True)
class Synced:
    """A metagraph, when it was read (UTC ms), and the name of the file that keeps it."""

    metagraph: Metagraph
    synced_at_ms: int
    name: str

    def pointed(self) -> dict[str, Any]:
        """Return what a pointer to it says."""
        return {
            "snapshot": self.name,
            "synced_at_ms": self.synced_at_ms,
            "block": self.metagraph.block,
            "genesis_hash": self.metagraph.genesis_hash,
        }


class ChainSnapshots:
    """The chain snapshots of one warehouse. Reads and writes files only when asked to."""

    def __init__(self, settings: WarehouseSettings) -> None:
        self.directory = settings.warehouse_path / "snapshots"
        self.pointer = self.directory / "current.json"
        self._lock_seconds_max = settings.publish_lock_seconds_max

    def keep(self, metagraph: Metagraph, synced_at_ms: int, chain_genesis: str = "") -> Synced:
        """Keep a metagraph as the newest one.

        On return it survives a power cut. Raises `MetagraphError`, and the last one stays in force,
        where it is of another chain or an earlier block than the last; `chain_genesis` is the chain
        that the operator wants, whatever the last one was.
        """
        make_directory(self.directory)
        with locked(self.directory / "lock", self._lock_seconds_max):
            # Not the file itself: a damaged one must not keep the next from taking its place.
            last = self._pointed()
            # After the clock was set back the block alone says which is later.
            last_at_ms = last["synced_at_ms"] if last else 0
            if synced_at_ms < last_at_ms and not is_ahead(last_at_ms):
                raise MetagraphError("a metagraph that was read later is in force already")
            _refuse_regress(last, metagraph.genesis_hash, metagraph.block, chain_genesis)
            name = self._write(metagraph)
            synced = Synced(metagraph, synced_at_ms, name)
            # From this rename on it is the newest, whatever crashes.
            write_durably(self.pointer, json.dumps(synced.pointed()).encode())
        return synced

    def refuse_regress(self, genesis_hash: str, block: int, chain_genesis: str = "") -> None:
        """Raise `MetagraphError` for a chain or a block with which `keep` would refuse it."""
        _refuse_regress(self._pointed(), genesis_hash, block, chain_genesis)

    def newest(self) -> Synced | None:
        """Return the newest one, None before the first sync.

        Raises `MetagraphError` when there is one that cannot be read.
        """
        found = self.newest_name()
        if found is None:
            return None
        name, synced_at_ms = found
        return Synced(self.read(name), synced_at_ms, name)

    def newest_readable(self) -> Metagraph | None:
        """Return the metagraph of the highest block that can be read, None if none can."""
        names = [path.name for path in self.directory.iterdir() if NAME.fullmatch(path.name)]
        for name in sorted(names, key=lambda name: int(name.partition("-")[0]), reverse=True):
            with contextlib.suppress(MetagraphError):
                return self.read(name)
        return None

    def newest_name(self) -> tuple[str, int] | None:
        """Return the newest one's name and when it was read, None before the first sync."""
        pointed = self._pointed()
        return (pointed["snapshot"], pointed["synced_at_ms"]) if pointed else None

    def content(self, name: str) -> bytes:
        """Return a snapshot's bytes; raise `MetagraphError` when it is not what was kept."""
        path = self.directory / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise MetagraphError(f"chain snapshot {path}: {error}") from error
        if _digest(content) != name.removesuffix(SUFFIX).rpartition("-")[2]:
            raise MetagraphError(f"chain snapshot {path}: the content is not what its name says")
        return content

    def restore(self, name: str, content: bytes) -> None:
        """Keep a snapshot that was kept elsewhere; raise `MetagraphError` if it is not whole."""
        # The name becomes a path on this machine.
        if not NAME.fullmatch(name):
            raise MetagraphError(f"{name!r} is not the name of a chain snapshot")
        if _digest(content) != name.removesuffix(SUFFIX).rpartition("-")[2]:
            raise MetagraphError(f"chain snapshot {name}: the content is not what its name says")
        make_directory(self.directory)
        write_durably(self.directory / name, content)

    def point_to(self, pointed: Mapping[str, Any]) -> None:
        """Make a restored snapshot the newest; a later one that is here stays it."""
        try:
            name, synced_at_ms = pointed["snapshot"], pointed["synced_at_ms"]
            is_snapshot = NAME.fullmatch(name) is not None and isinstance(synced_at_ms, int)
        except (KeyError, TypeError):
            is_snapshot = False
        if not is_snapshot:
            raise MetagraphError("the bucket's pointer names no chain snapshot")
        self.read(name)
        with locked(self.directory / "lock", self._lock_seconds_max):
            last = self._pointed()
            if last is None or last["synced_at_ms"] < synced_at_ms:
                write_durably(self.pointer, json.dumps(dict(pointed)).encode())

    def _pointed(self) -> dict[str, Any] | None:
        try:
            pointed: dict[str, Any] = json.loads(self.pointer.read_bytes())
            is_whole = (
                isinstance(pointed["snapshot"], str)
                and isinstance(pointed["synced_at_ms"], int)
                and isinstance(pointed["block"], int)
                and isinstance(pointed["genesis_hash"], str | None)
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MetagraphError(f"{self.pointer} cannot be read: {error}") from error
        if not is_whole:
            raise MetagraphError(f"{self.pointer} cannot be read: it names no snapshot")
        return pointed

    def read(self, name: str) -> Metagraph:
        """Read any snapshot by its name; raise `MetagraphError` when it is not what was kept."""
        path = self.directory / name
        neurons = pl.read_parquet(io.BytesIO(self.content(name)))
        if found := violations(neurons, NEURONS):
            raise MetagraphError(f"chain snapshot {path}: {'; '.join(found)}")
        return Metagraph(neurons)

    def _write(self, metagraph: Metagraph) -> str:
        parquet = io.BytesIO()
        metagraph.neurons.write_parquet(
            parquet, compression="zstd", compression_level=COMPRESSION_LEVEL
        )
        content = parquet.getvalue()
        name = f"{metagraph.block}-{_digest(content)}{SUFFIX}"
        if not (self.directory / name).exists():
            write_durably(self.directory / name, content)
        return name


def _refuse_regress(
    last: dict[str, Any] | None, now: str | None, block: int, chain_genesis: str
) -> None:
    """Refuse a node that lags behind or is of another chain. A file may say what it likes."""
    was = last["genesis_hash"] if last else None
    if last is None or was is None or now is None:
        return
    if was != now:
        if now != chain_genesis.lower():
            raise MetagraphError(
                f"the node is of the chain {now}, the last snapshot of {was}: set CHAIN_GENESIS to "
                "the one that is meant"
            )
    elif block < last["block"]:
        raise MetagraphError(
            f"the node is at block {block}, but block {last['block']} was read before: it lags"
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGEST_DIGITS]
