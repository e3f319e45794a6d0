"""The blacklist: read by everybody from the log, live, and kept by the admins."""

from typing import Any

import orjson
from fastapi import APIRouter, HTTPException, Response

from api.bodies import BlacklistAddition
from api.dependencies import ByAdmin, HotkeyText, Reader, TheService, admin_body, check_hotkey
from api.errors import JsonResponse, documented
from api.instants import iso8601
from api.models import BlacklistEntryResponse, BlacklistRemovalResponse
from api.openapi import signed
from warehouse.records import BlacklistEntry

router = APIRouter(prefix="/blacklist", tags=["blacklist"])


def _answer(entry: BlacklistEntry) -> dict[str, Any]:
    return {
        "hotkey": entry.hotkey,
        "reason": entry.reason,
        "added_by": entry.added_by,
        "created_at": iso8601(entry.created_at_ms),
    }


@router.get("", response_model=list[BlacklistEntryResponse], responses=documented(503))
async def entries(log: Reader, parts: TheService) -> Response:
    """Return all entries by hotkey."""
    blacklist = (await parts.threads.brief(log.admin_state)).blacklist
    return JsonResponse(orjson.dumps([_answer(blacklist[hotkey]) for hotkey in sorted(blacklist)]))


@router.get("/miners", response_model=list[str], responses=documented(503))
async def hotkeys(log: Reader, parts: TheService) -> Response:
    """Return the blacklisted hotkeys alone."""
    state = await parts.threads.brief(log.admin_state)
    return JsonResponse(orjson.dumps(sorted(state.blacklist)))


@router.get("/{hotkey}", response_model=BlacklistEntryResponse, responses=documented(400, 404, 503))
async def entry(hotkey: HotkeyText, log: Reader, parts: TheService) -> Response:
    """Return one entry."""
    checked = check_hotkey(hotkey)
    found = (await parts.threads.brief(log.admin_state)).blacklist.get(checked)
    if found is None:
        raise HTTPException(404, "this hotkey is not on the blacklist")
    return JsonResponse(orjson.dumps(_answer(found)))


@router.post(
    "",
    response_model=BlacklistEntryResponse,
    responses=documented(401, 403, 409, 413, 422, 503),
    openapi_extra=signed(BlacklistAddition),
)
async def add(request: ByAdmin, parts: TheService) -> Response:
    """Put a hotkey on the blacklist, or give its entry a new reason; it is refused at once."""
    body = await admin_body(request, BlacklistAddition, parts)
    added = await parts.landing.of(parts.writer.add_to_blacklist(request, body.hotkey, body.reason))
    # Another admin may have removed it in between; what this one did is what it is told.
    kept = parts.reader.admin_state().blacklist.get(body.hotkey) or BlacklistEntry(
        body.hotkey, body.reason, request.hotkey, added.received_at_ms
    )
    return JsonResponse(orjson.dumps(_answer(kept)))


@router.delete(
    "/{hotkey}",
    response_model=BlacklistRemovalResponse,
    responses=documented(400, 401, 403, 404, 409, 413, 503),
    openapi_extra=signed(),
)
async def remove(request: ByAdmin, hotkey: HotkeyText, parts: TheService) -> dict[str, Any]:
    """Take a hotkey off the blacklist."""
    try:
        check_hotkey(hotkey)
    except HTTPException:
        # Else whoever saw this request could send its signature again with a path that fits.
        await parts.remember_signature(request.signature)
        raise
    await parts.landing.of(parts.writer.remove_from_blacklist(request, hotkey))
    return {
        "success": True,
        "message": f"{hotkey} is no longer on the blacklist",
        "removed_by": request.hotkey,
    }
