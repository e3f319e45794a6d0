"""All ways in which a service gives no answer, each with what the clients make of it."""

import json

from cli.simulated.services import HttpFault
from pipelines.outside import BODY_BYTES_MAX, Cause


def status(status: int, body: bytes = b"{}", **headers: str) -> HttpFault:
    return HttpFault("status", status, {n.replace("_", "-"): v for n, v in headers.items()}, body)


FAULTS = {
    "hang": (HttpFault("hang"), Cause.OUTAGE),
    "drip_headers": (HttpFault("drip_headers"), Cause.OUTAGE),
    "drip_body": (HttpFault("drip_body"), Cause.OUTAGE),
    "cut": (HttpFault("cut"), Cause.OUTAGE),
    "garbage": (HttpFault("garbage"), Cause.OUTAGE),
    "500": (status(500), Cause.OUTAGE),
    "502 in HTML": (status(502, b"<html>", Content_Type="text/html"), Cause.OUTAGE),
    "503 with a list": (status(503, b"[]"), Cause.OUTAGE),
    "529": (status(529), Cause.OUTAGE),
    "429": (status(429), Cause.OUTAGE),
    "429 with a list": (status(429, b"[1]", Retry_After="30"), Cause.OUTAGE),
    "a portal's page": (status(200, b"<html>", Content_Type="text/html"), Cause.OUTAGE),
    "half a document": (status(200, b'{"hot": true, "sha": "'), Cause.OUTAGE),
    "not UTF-8": (status(200, b'{"\xff": 1}'), Cause.OUTAGE),
    "empty": (status(200, b""), Cause.OUTAGE),
    "our credentials": (
        status(401, X_Error_Message="Invalid credentials in Authorization header"),
        Cause.REFUSED,
    ),
    "forbidden": (status(403), Cause.REFUSED),
    "400": (status(400), Cause.UNUSABLE),
    "418": (status(418), Cause.UNUSABLE),
    "a list": (status(200, b"[]"), Cause.UNUSABLE),
    "a number": (status(200, b"1"), Cause.UNUSABLE),
    "null": (status(200, b"null"), Cause.UNUSABLE),
    "an empty object": (status(200, b"{}"), Cause.UNUSABLE),
    "sent elsewhere": (status(307, Location="http://localhost:1/chutes/x"), Cause.UNUSABLE),
    "encoded": (status(200, b"\x1f\x8b", Content_Encoding="gzip"), Cause.UNUSABLE),
    "huge": (status(200, b" " * (BODY_BYTES_MAX + 1)), Cause.UNUSABLE),
}


# Whom this is done to learns of it only when the time is over.
ENDLESS = {"hang", "drip_headers", "drip_body"}


def described(**fields: object) -> HttpFault:
    """A 200 with this object."""
    return status(200, json.dumps(fields).encode())
