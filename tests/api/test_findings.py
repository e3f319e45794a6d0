"""What was found once does not come back."""

import contextlib
import json
import socket
import subprocess
import sys
import threading

import psutil
import pytest

from tests.api.findings import RAW, REUSED, SIGNED
from tests.api.fuzzing import answers_in, exchange
from tests.builders import hotkey, signed_headers
from warehouse.sqlite_log import SqliteLog


@pytest.fixture(scope="module")
def quick(module_home):
    """A server that does not wait long for what does not come."""
    from tests.api.conftest import API_SETTINGS, publish_subnet  # noqa: PLC0415
    from tests.api.servers import Server  # noqa: PLC0415

    publish_subnet(module_home)
    limits = {"keep_alive_seconds": 0.2, "header_seconds_max": 0.4}
    with Server(API_SETTINGS.model_copy(update=limits), module_home) as server:
        yield server


@pytest.mark.parametrize("finding", RAW.values(), ids=RAW)
def test_bytes_that_were_found_once(quick, finding):
    received = exchange(quick.port, [finding.sent])
    answers = answers_in(received, finding.sent)
    assert tuple(answer.status for answer in answers) == finding.statuses
    assert not any("location" in answer.headers for answer in answers)


@pytest.mark.parametrize("scheme", [1, 2])
@pytest.mark.parametrize("finding", SIGNED.values(), ids=SIGNED)
def test_signed_requests_that_were_found_once(quick, finding, scheme):
    answer = quick.signed(
        finding.signer, finding.method, finding.path, content=finding.body, scheme=scheme
    )
    assert answer.status_code == finding.status, answer.text


@pytest.mark.parametrize("finding", REUSED.values(), ids=REUSED)
def test_signatures_that_were_good_for_more_once(quick, finding):
    headers = signed_headers("admin", finding.body)
    for method, path, status in (finding.first, finding.second):
        answer = quick.http.request(method, path, content=finding.body, headers=headers)
        assert answer.status_code == status, answer.text


def test_artifacts_that_nest_without_an_end_are_shown(quick):
    finding = SIGNED["artifacts that nest without an end"]
    assert quick.signed("big", "POST", finding.path, content=finding.body).status_code == 200
    assert quick.get(f"/tasks/4/miner/{hotkey('old')}").status_code == 200


def test_an_admin_that_leaves_in_the_middle_of_a_read_is_no_error(quick, caplog):
    headers = signed_headers("admin", b"", path="/weights")
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with contextlib.closing(socket.create_connection(("127.0.0.1", quick.port))) as connection:
        request = f"GET /weights HTTP/1.1\r\nHost: l\r\n{head}Content-Length: 10\r\n\r\nhalf"
        connection.sendall(request.encode())
    assert quick.get("/health/live").json() == {"status": "alive"}
    assert not [one for one in caplog.records if one.exc_info]


def test_threads_that_have_ended_keep_no_handle(warehouse_settings):
    """Each that had read the log once kept its connection: a burst of readers cost 80 handles."""
    log = SqliteLog(warehouse_settings)
    try:
        log.head()
        before = psutil.Process().num_fds()
        for _ in range(3):
            threads = [threading.Thread(target=log.head) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        # SQLite closes some only when the last statement that holds a lock has ended.
        assert psutil.Process().num_fds() - before < 20
        assert log.head() == 0
    finally:
        log.close()


def test_a_document_of_another_kind_is_no_object(quick):
    for body in (b"null", b"[]", b"0", b'"x"', b"", b"{}"):
        for path in ("/samples", "/samples/batch"):
            answer = quick.signed("big", "POST", path, content=body)
            assert answer.status_code == 422, (path, body)
            assert isinstance(json.loads(answer.content)["detail"], list)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_failure_is_told_without_what_was_at_hand(form):
    """Every local variable was shown: what a request holds, settings, and seconds of work."""
    code = f"""
import logging
from cli.logs import write_logs
write_logs({form!r}, "error")
at_hand = "sec" + "ret"
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("x").exception("failed")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ZeroDivisionError" in said.stderr
    assert "secret" not in said.stderr
