"""Who counts as one client: what has limits of its own, and who is believed to speak for others."""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from api.settings import ApiSettings

ADDRESSES_KEPT = 8_192
# Who holds an IPv6 address holds all 2**64 of its network.
IPV6_PREFIX = 64


class Clients:
    """Tells who is behind a connection."""

    def __init__(self, settings: ApiSettings) -> None:
        self._trusted = [ip_network(one) for one in settings.trusted_proxies]
        self._is_trusted = lru_cache(ADDRESSES_KEPT)(self._looked_up)

    def client(self, peer: Sequence[Any] | None) -> str | None:
        """Return the address or network that counts as one client; None has no limits.

        That is a trusted proxy that names no client: it stands for all of them, or it is a program
        on this machine.
        """
        if not peer or self._is_trusted(peer[0]):
            return None
        return network_of(peer[0])

    def _looked_up(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._trusted)


@lru_cache(ADDRESSES_KEPT)
def network_of(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or an IPv6 network."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:255]  # what a trusted proxy calls its client
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ip_network((parsed, IPV6_PREFIX), strict=False))
