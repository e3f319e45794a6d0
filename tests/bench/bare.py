"""The limit of reading: an ASGI application that answers with the same bytes and headers, no more.

BENCH_ANSWERS names a JSON file: path → {"headers": [[name, value]], "body": text}.
"""

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Bare:
    """Answers each known path with two prebuilt messages."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = {
            path: (
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [
                        (name.encode(), value.encode()) for name, value in parts["headers"]
                    ],
                },
                {"type": "http.response.body", "body": parts["body"].encode()},
            )
            for path, parts in answers.items()
        }

    async def __call__(self, scope: dict[str, Any], receive: object, send: Send) -> None:
        if scope["type"] == "http":
            start, body = self._answers[scope["path"]]
            await send(start)
            await send(body)


def app() -> Bare:
    return Bare(json.loads(Path(os.environ["BENCH_ANSWERS"]).read_text()))
