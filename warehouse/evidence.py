"""What proves a record: the signed request that brought it, checked against its signer's key."""

import zstandard

from warehouse.hotkeys import signed_message, verify
from warehouse.log import SubmissionRow


class EvidenceError(ValueError):
    """A stored request cannot be read as one; the message says why."""


def body_of(row: SubmissionRow) -> bytes:
    """Return a submission's body as it arrived; raises `EvidenceError` where it is damaged."""
    try:
        return zstandard.decompress(row.body)
    except zstandard.ZstdError as error:
        raise EvidenceError(
            f"the body of submission {row.seq} cannot be unpacked: {error}"
        ) from error


def unsigned(row: SubmissionRow) -> str | None:
    """Say in a sentence why a submission proves nothing; None where its hotkey signed it."""
    # Not signed: without this, any other number would be taken for 2, and a nonce added to a 1.
    if (row.scheme, row.nonce is None) not in {(1, True), (2, False)}:
        return f"submission {row.seq} is of no scheme of signatures"
    try:
        message = signed_message(
            scheme=row.scheme,
            method=row.method,
            path=row.path,
            body=body_of(row),
            timestamp=row.timestamp,
            nonce=row.nonce,
        )
    except EvidenceError as error:
        return str(error)
    if not verify(row.hotkey, row.signature, message):
        return f"submission {row.seq} is not signed by {row.hotkey}"
    return None
