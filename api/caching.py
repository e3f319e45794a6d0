"""What spares work: answers that the client has already, and those that were rendered before."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

# What an answer takes beside its text: the objects of its key, of itself and of its place in the
# order. Anybody can ask for any hotkey, and most answers about strangers are two bytes long.
ENTRY_BYTES = 512


def is_match(etag: bytes, if_none_match: bytes) -> bool:
    """Tell whether If-None-Match (`*`, or a list of tags, weak ones included) names `etag`."""
    if if_none_match.strip() == b"*":
        return True
    tags = (tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b","))
    return etag in tags


class RenderedAnswers:
    """Rendered answers by key, the least recently used dropped first. Threads share it.

    `bytes_max` bounds the memory of all of it, keys included. One answer is rendered at a time:
    each can take many times its size, and after a new generation everybody asks for the same one.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._answers: OrderedDict[tuple[str, ...], bytes] = OrderedDict()
        self._lock = Lock()
        self._rendering = Lock()

    def get(self, key: tuple[str, ...], render: Callable[[], bytes]) -> bytes:
        """Return the answer kept under `key`, rendering it if there is none. This may wait."""
        with self._rendering:
            # Somebody may have rendered it while this waited.
            if (kept := self.kept(key)) is not None:
                return kept
            answer = render()
            self._keep(key, answer)
        return answer

    def kept(self, key: tuple[str, ...]) -> bytes | None:
        """Return the answer kept under `key`, None if there is none; at once."""
        with self._lock:
            if (kept := self._answers.get(key)) is not None:
                self._answers.move_to_end(key)
            return kept

    def _keep(self, key: tuple[str, ...], answer: bytes) -> None:
        size = len(answer) + ENTRY_BYTES
        if size > self._bytes_max:
            return
        with self._lock:
            self._answers[key] = answer
            self._bytes += size
            while self._bytes > self._bytes_max:
                self._bytes -= len(self._answers.popitem(last=False)[1]) + ENTRY_BYTES
