"""Links by which anybody may read one object for a while: presigned S3 URLs, Signature Version 4.

boto3 makes the same ones. This does it without what boto3 takes to load and to sign, because every
API worker signs and few of them ask anything else of object storage. Nothing here uses the network.
"""

import hmac
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv4Address
from urllib.parse import quote, urlsplit

# As long as S3 takes.
PRESIGNED_SECONDS_MAX = 604_800
ALGORITHM = "AWS4-HMAC-SHA256"
# Whoever reads a link sees all of the endpoint, so that nothing but an address may be in it.
ENDPOINT = re.compile(
    r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?(/[\w~-][\w.~-]*)*/?",
    re.ASCII | re.IGNORECASE,
)
# As S3 has it: 3 to 63 small letters, digits and hyphens, with dots between, and no IP address.
BUCKET = re.compile(r"(?=.{3,63}$)(?!([0-9]+\.){3}[0-9]+$)[a-z0-9]+((-+|\.)[a-z0-9]+)*", re.ASCII)
AWS_REGION = re.compile(r"[a-z]{2}[a-z0-9-]*-[0-9]+")


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key of object storage, with a session token if it is a temporary one. Never shown."""

    key_id: str = field(repr=False)
    secret: str = field(repr=False)
    session_token: str = field(default="", repr=False)


class Presigner:
    """Signs links for one bucket. Threads share it.

    Raises `ValueError`, in which no address is, if links cannot be made for these settings.
    """

    def __init__(
        self, endpoint_url: str, region: str, bucket: str, *, is_virtual_host: bool = False
    ) -> None:
        if not BUCKET.fullmatch(bucket):
            raise ValueError("that is no name of a bucket")
        endpoint_url = endpoint_url or _aws_endpoint(region)
        if not ENDPOINT.fullmatch(endpoint_url):
            raise ValueError("links need an endpoint of scheme, host, port and plain path alone")
        parts = urlsplit(endpoint_url)
        network_location, path = parts.netloc, parts.path.rstrip("/")
        if is_virtual_host and _fits_before(parts.scheme, parts.hostname or "", bucket):
            network_location = f"{bucket}.{network_location}"
        else:
            path = f"{path}/{bucket}"
        self._origin = f"{parts.scheme}://{network_location}"
        self._path = path
        self._host = _host_header(self._origin)
        self._region = region

    def url(self, key: str, access_key: AccessKey, at_unix: int, seconds: int) -> str:
        """Return the link to an object, good from `at_unix` for `seconds` (at most a week)."""
        if not 0 < seconds <= PRESIGNED_SECONDS_MAX:
            raise ValueError(f"a link is good for 1 to {PRESIGNED_SECONDS_MAX} seconds")
        instant = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at_unix))
        day = instant[:8]
        scope = f"{day}/{self._region}/s3/aws4_request"
        path = f"{self._path}/{quote(key, safe='/~')}"
        credential = quote(f"{access_key.key_id}/{scope}", safe="~")
        token = ""
        if access_key.session_token:
            token = f"&X-Amz-Security-Token={quote(access_key.session_token, safe='~')}"
        begin = (
            f"X-Amz-Algorithm={ALGORITHM}&X-Amz-Credential={credential}"
            f"&X-Amz-Date={instant}&X-Amz-Expires={seconds}"
        )
        signed_headers = "&X-Amz-SignedHeaders=host"
        # What is signed has the parameters by name; the link has them as boto3 does.
        request = (
            f"GET\n{path}\n{begin}{token}{signed_headers}\n"
            f"host:{self._host}\n\nhost\nUNSIGNED-PAYLOAD"
        )
        text = f"{ALGORITHM}\n{instant}\n{scope}\n{sha256(request.encode()).hexdigest()}"
        signing_key = _signing_key(access_key.secret, day, self._region)
        signature = hmac.digest(signing_key, text.encode(), "sha256").hex()
        return f"{self._origin}{path}?{begin}{signed_headers}{token}&X-Amz-Signature={signature}"


@lru_cache(16)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _aws_endpoint(region: str) -> str:
    if not AWS_REGION.fullmatch(region):
        raise ValueError("AWS wants its real region, as eu-west-1")
    china = ".cn" if region.startswith("cn-") else ""
    return f"https://s3.{region}.amazonaws.com{china}"


def _fits_before(scheme: str, host: str, bucket: str) -> bool:
    """Tell whether the bucket's name can be in the host name; else it stays in the path."""
    # No certificate covers a name with a dot before the host's.
    is_covered = scheme == "http" or "." not in bucket
    return is_covered and not (":" in host or _is_ipv4(host))


def _is_ipv4(host: str) -> bool:
    try:
        IPv4Address(host)
    except ValueError:
        return False
    return True


def _host_header(origin: str) -> str:
    """Return what an HTTP client sends as Host: in small letters, without the usual port."""
    parts = urlsplit(origin)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    is_usual = parts.port in (None, {"http": 80, "https": 443}[parts.scheme])
    return host if is_usual else f"{host}:{parts.port}"
