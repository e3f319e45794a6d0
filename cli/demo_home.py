"""What a demo keeps in its home: the subnet's files, the keys, and which tasks it has played."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from cli import subnet
from warehouse import files


class DemoHomeError(Exception):
    """The home cannot be used for a demo."""


class DemoHome:
    """A directory; nothing is written before `make`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.own = path / "demo"
        self.metagraph = self.own / "metagraph.json"
        self.logs = path / "logs"
        self._periods = self.own / "tasks.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other demos out; raise `DemoHomeError` if one is running here."""
        self.own.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(files.locked(self.own / "lock", timeout_seconds=1))
            except files.LockTimeoutError as error:
                raise DemoHomeError(f"Another demo is running in {self.path}.") from error
            yield

    def make(self) -> Path:
        """Write the metagraph file and the keys, always the same; return the logs' directory."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.key_file(subnet.ADMIN).parent.mkdir(mode=0o700, exist_ok=True)
        content = json.dumps(subnet.metagraph(), indent=1).encode()
        files.write_durably(self.metagraph, content)
        for neuron in (subnet.ADMIN, *subnet.VALIDATORS):
            path = self.key_file(neuron)
            path.touch(mode=0o600)
            path.write_text(f"{neuron.uri}\n")
        return self.logs

    def key_file(self, neuron: subnet.Neuron) -> Path:
        """Return where a neuron's key is, for `leoma --key`."""
        return self.own / "keys" / neuron.name

    def periods(self) -> list[subnet.Period]:
        """Return the tasks that demos have played here, oldest first."""
        return [subnet.Period(first, last) for first, last, _ in self._recorded()]

    def next_period(self, tasks: int, latest_task: int | None) -> subnet.Period:
        """Record and return the tasks to play now: the next ones, or those of a demo that was
        interrupted, which are played anew (the newest version of a sample counts).
        """
        recorded = self._recorded()
        last = recorded[-1][1] if recorded else 0
        if (latest_task or 0) > last:
            raise DemoHomeError(
                f"{self.path} has tasks up to {latest_task} that no demo made: use another --home."
            )
        if not recorded or recorded[-1][2]:
            recorded.append((last + 1, last + tasks, False))
            self._record(recorded)
        first, last, _ = recorded[-1]
        return subnet.Period(first, last)

    def finish(self, period: subnet.Period) -> None:
        """Record that all of a period's samples are stored."""
        self._record([*self._recorded()[:-1], (period.first, period.last, True)])

    def _recorded(self) -> list[tuple[int, int, bool]]:
        if not self._periods.exists():
            return []
        try:
            return [
                (int(entry["first"]), int(entry["last"]), bool(entry["is_played"]))
                for entry in json.loads(self._periods.read_bytes())
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise DemoHomeError(f"{self._periods} is damaged: use another --home.") from error

    def _record(self, recorded: list[tuple[int, int, bool]]) -> None:
        entries = [
            {"first": first, "last": last, "is_played": is_played}
            for first, last, is_played in recorded
        ]
        files.write_durably(self._periods, json.dumps(entries, indent=1).encode())
