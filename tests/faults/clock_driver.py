"""A child program: a service through whose life the clock is set back by an hour, and on again."""

import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path

from api.settings import ApiSettings
from pipelines.run import materialize
from pipelines.settings import PipelineSettings
from tests.api.servers import Server
from tests.builders import sample_body, signed_headers, write_metagraph
from tests.faults.shim import Inside
from tests.warehouse.builders import hotkey, settings
from warehouse.backends import open_outbox
from warehouse.sqlite_keeper import SqliteKeeper

HOUR = 3_600
ADMIN = ApiSettings(admin_hotkeys=frozenset({hotkey("admin")}), snapshot_poll_seconds=0.05)
SECONDS_MAX = 60


class Service:
    """A home, what runs on it, and what it said."""

    def __init__(self, root):
        self.root, self.settings = root, settings(root / "home")
        self.blocks, self.names, self.answers = 1_000, [], {}

    def run(self):
        """Have the chain read at a later block, and a generation made."""
        self.blocks += 1
        write_metagraph(
            self.root / "metagraph.json",
            validators=[{"hotkey": hotkey("v")}],
            miners=[{"hotkey": hotkey("miner")}],
            block=self.blocks,
        )
        source = PipelineSettings(chain_source=str(self.root / "metagraph.json"))
        self.names.append(materialize(source, self.settings).snapshot_id)

    def serving(self):
        return Server(ADMIN, self.settings)

    def send(self, server, name, request):
        answer = server.http.request(**request)
        said = answer.json() if answer.is_success else {}
        self.answers[name] = [answer.status_code, said.get("id")]

    def told(self, server):
        health, weights = server.get("/health").json(), server.get("/weights").json()
        valid_until = datetime.fromisoformat(weights["valid_until"]).timestamp()
        return {
            "problems": health["problems"],
            "is_synced": health["metagraph_synced"],
            "valid_seconds": valid_until - time.time(),
        }

    def wait_for(self, server):
        deadline = time.monotonic() + SECONDS_MAX
        while server.get("/weights").json()["snapshot_id"] != self.names[-1]:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def signed(name, method, path, document=None):
    body = json.dumps(document).encode() if document else b""
    headers = signed_headers(name, body, method=method, path=path, scheme=2)
    return {"method": method, "url": path, "content": body, "headers": headers}


def vote(task):
    return signed("v", "POST", "/samples", sample_body(task_id=task, latency_ms=task))


def claimed(service):
    outbox = open_outbox(service.settings)
    try:
        # What is due now comes first, then what is due later than anything can be.
        return sorted(claim.task_id for _ in range(2) for claim in outbox.claim(9))
    finally:
        outbox.close()


def live(service, set_clock):
    """Tell what is seen before the clock is set back, after it, and when it is there again."""
    seen = {}
    set_clock(HOUR)
    service.run()
    used = vote(1)
    refused = signed("admin", "DELETE", f"/blacklist/{hotkey('miner')}")
    with service.serving() as server:
        service.send(server, "used", used)
        service.send(server, "refused", refused)
        service.run()
        service.wait_for(server)
        seen["claimed before"] = claimed(service)
        seen["before"] = service.told(server)
        set_clock(0)
        seen["set back"] = service.told(server)
        service.send(server, "used, early", used)
        service.send(server, "while it ran", vote(2))
    with service.serving() as server:
        service.send(server, "after a restart", vote(3))
        seen["claimed after"] = claimed(service)
        service.run()
        service.wait_for(server)
        seen["after a run"] = service.told(server)
        # By now the hotkey can be taken off, which the admin wanted then and may not want now.
        put = {"hotkey": hotkey("miner"), "reason": "copies"}
        service.send(server, "put on", signed("admin", "POST", "/blacklist", put))
        set_clock(HOUR)
        service.send(server, "used again", used)
        service.send(server, "refused again", refused)
        set_clock(0)
        service.send(server, "last", vote(4))
        seen["newest"] = [row["id"] for row in server.get("/samples/list").json()]
    return seen


def main():
    task = json.loads(Path(sys.argv[1]).read_text())
    work, root = Path(task["work"]), Path(task["root"])
    service, control = Service(root), Inside(work).control
    seen = live(service, control.set_clock)
    keeper = SqliteKeeper(service.settings)
    seen |= {"check": keeper.check(), "names": service.names, "answers": service.answers}
    keeper.close()
    (work / "report.json").write_text(json.dumps(seen))
    # Threads that waited by the clock need not be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
