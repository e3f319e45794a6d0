"""What the OpenAPI document says beyond the routes' own types: signatures, and bodies that the
routes parse themselves because authentication comes before validation.
"""

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from api.bodies import BlacklistAddition, Body, SampleBatch, SampleSubmission, TaskAnnouncement
from api.errors import DESCRIPTIONS

DESCRIPTION = """
Validators submit signed samples; the service aggregates them into stake-weighted scores, ranks
miners by dominance, and serves the weights that validators set on chain.

**Signing.** Scheme 1 signs `<hex sha256 of the body>:<X-Timestamp>`. Scheme 2
(`X-Signature-Version: 2`) signs
`v2\\n<METHOD>\\n<path with query>\\n<hex sha256 of the body>\\n<X-Timestamp>\\n<X-Nonce>`.
Both are sr25519 over the UTF-8 text, by the hotkey. A signature is good for one write.
"""
BODIES: tuple[type[Body], ...] = (
    SampleSubmission,
    SampleBatch,
    TaskAnnouncement,
    BlacklistAddition,
)
REFERENCE = "#/components/schemas/{model}"
ERROR = {"$ref": REFERENCE.format(model="ErrorResponse")}


def _header(name: str, description: str) -> dict[str, str]:
    return {"type": "apiKey", "in": "header", "name": name, "description": description}


SECURITY_SCHEMES = {
    "Hotkey": _header("X-Validator-Hotkey", "SS58 address of the hotkey that signs."),
    "Signature": _header("X-Signature", "Hex of the 64-byte sr25519 signature."),
    "Timestamp": _header("X-Timestamp", "Unix seconds in decimal, as signed."),
    "SignatureVersion": _header("X-Signature-Version", "`2` for scheme 2; absent for scheme 1."),
    "Nonce": _header("X-Nonce", "Scheme 2: 16 to 64 printable ASCII characters, as signed."),
}
SCHEME_1: dict[str, list[str]] = {"Hotkey": [], "Signature": [], "Timestamp": []}
SCHEME_2: dict[str, list[str]] = {**SCHEME_1, "SignatureVersion": [], "Nonce": []}


def signed(body: type[Body] | None = None) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that wants a signature, and maybe a body."""
    extra: dict[str, Any] = {"security": [SCHEME_1, SCHEME_2]}
    if body is not None:
        schema = {"$ref": REFERENCE.format(model=body.__name__)}
        extra["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return extra


def _drop_unreachable_errors(built: dict[str, Any]) -> None:
    """Take out the 422 that FastAPI adds to every route with a parameter.

    The routes that can answer one document it themselves, in the shape that it has here.
    """
    for methods in built["paths"].values():
        for operation in methods.values():
            described = json.dumps(operation["responses"].get("422"))
            if "/HTTPValidationError" in described:
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        built["components"]["schemas"].pop(name, None)


def _document_limits(built: dict[str, Any]) -> None:
    """Say of every route what a client may get whatever it asks for."""
    for methods in built["paths"].values():
        for operation in methods.values():
            statuses = (408, 429, 503) if "requestBody" in operation else (429, 503)
            for status in statuses:
                operation["responses"].setdefault(
                    str(status),
                    {
                        "description": DESCRIPTIONS[status],
                        "content": {"application/json": {"schema": ERROR}},
                    },
                )


def install_openapi(app: FastAPI) -> None:
    """Make `app.openapi()` return the whole document, built once."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            built = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            _drop_unreachable_errors(built)
            _document_limits(built)
            _, bodies = models_json_schema(
                [(body, "validation") for body in BODIES], ref_template=REFERENCE
            )
            components = built["components"]
            components["schemas"].update(bodies["$defs"])
            components["securitySchemes"] = SECURITY_SCHEMES
            app.openapi_schema = built
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way
