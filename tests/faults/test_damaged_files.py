"""Bytes of the log or of a generation are not what was written, while they are served and before.

What can be noticed is never served: it is a 503 that says so, beside reads that go on. Of the log
every page is damaged in turn where LEOMA_TORTURE=1, each in several ways.
"""

import os
import random
import shutil

import pytest

from api.settings import ApiSettings
from tests.api.servers import Server
from tests.builders import publish, sample_body, wait_for
from tests.warehouse.builders import append, hotkey, request, sample, settings
from warehouse.generation import Generations
from warehouse.log import LogError
from warehouse.sqlite_keeper import SqliteKeeper
from warehouse.sqlite_log import SqliteLog

PAGE = 4_096
SUBMISSIONS = 12
SECONDS_MAX = 60
API = ApiSettings(admin_hotkeys=frozenset({hotkey("admin")}), snapshot_poll_seconds=0.05)
LIVE_READS = ("/samples/list?limit=500", "/tasks/3", f"/samples/validator/{hotkey('v')}")
QUESTIONS = {
    "head": lambda log: log.head(),
    "admin state": lambda log: log.admin_state(),
    "newest": lambda log: log.newest_samples(500),
    "of a validator": lambda log: log.samples_of_validator(hotkey("v"), 500),
    "of a miner": lambda log: log.samples_of_miner(hotkey("a"), 500),
    "newest as JSON": lambda log: log.samples_as_json(500),
    "of a validator as JSON": lambda log: log.samples_as_json(500, validator_hotkey=hotkey("v")),
    "of a miner as JSON": lambda log: log.samples_as_json(500, miner_hotkey=hotkey("a")),
    "of a task": lambda log: log.samples_of_task("3", 500),
    "of a submission": lambda log: log.submission_samples(3),
    "latest task": lambda log: log.latest_sampled_task(),
    "votes": lambda log: list(log.votes_between(0, 99)),
    "texts": lambda log: list(log.texts_between(0, 99)),
    "submissions": lambda log: list(log.submissions_between(0, 99)),
    "dropped": lambda log: log.dropped_through(),
    "submitted": lambda log: log.submitted(3),
    "backlog": lambda log: log.backlog(99),
    "oldest": lambda log: log.oldest_waiting_submission(),
}


def zeros(_page, _all, _chance):
    return bytes(PAGE)


def noise(_page, _all, chance):
    return chance.randbytes(PAGE)


def no_header(page, _all, _chance):
    return b"\xff" * 64 + page[64:]


def a_few_bytes(page, _all, chance):
    at = chance.randrange(PAGE - 8)
    return page[:at] + chance.randbytes(8) + page[at + 8 :]


def of_elsewhere(_page, everything, chance):
    """A write that went to the wrong place."""
    at = chance.randrange(1, len(everything) // PAGE) * PAGE
    return everything[at : at + PAGE]


# Whether SQLite or the types of the columns must tell: bytes of a text are as good as others.
DAMAGES = {zeros: True, noise: True, no_header: True, a_few_bytes: False, of_elsewhere: False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a log, and the answers to all questions."""
    home = tmp_path_factory.mktemp("whole")
    log = SqliteLog(settings(home))
    log.announce_task(request("admin"), 99).result(30)
    log.add_to_blacklist(request("admin"), hotkey("bad"), "copies").result(30)
    for task in range(SUBMISSIONS):
        samples = [sample(miner, task, reasoning="Why? " * 200) for miner in "abc"]
        append(log, *samples, signer="v" if task % 2 else "w")
    answers = {name: ask(log) for name, ask in QUESTIONS.items()}
    log.close()
    return settings(home).log_path.read_bytes(), answers


def wrong_with(home, answers, *, must_be_told):
    """Say what somebody was told who should not have been; who is refused is told nothing."""
    try:
        log = SqliteKeeper(settings(home))
    except LogError:
        return None
    wrong = []
    try:
        for name, ask in QUESTIONS.items():
            try:
                if ask(log) != answers[name] and must_be_told:
                    wrong.append(name)
            except LogError:
                pass
            except Exception as error:  # noqa: BLE001  (the test tells it)
                wrong.append(f"{name} raised {type(error).__name__}: {error}")
    finally:
        log.close()
    return wrong


@pytest.mark.parametrize("damage", list(DAMAGES), ids=lambda damage: damage.__name__)
def test_a_damaged_page_is_an_error_and_no_answer(
    whole, tmp_path, is_torture, damage, record_property
):
    content, answers = whole
    found, count = [], 0
    for number in range(0, len(content) // PAGE, 1 if is_torture else 3):
        for again in range(8 if is_torture and "chance" in damage.__code__.co_varnames else 1):
            chance = random.Random(f"{number} {again}")
            count += 1
            at = number * PAGE
            page = damage(content[at : at + PAGE], content, chance)
            home = tmp_path / "home"
            shutil.rmtree(home, ignore_errors=True)
            settings(home).log_path.parent.mkdir(parents=True)
            settings(home).log_path.write_bytes(content[:at] + page + content[at + PAGE :])
            if wrong := wrong_with(home, answers, must_be_told=DAMAGES[damage]):
                found.append(f"page {number}: {wrong}")
    record_property("damaged pages", count)
    assert not found, "\n".join(found)


@pytest.fixture
def home(tmp_path):
    return settings(tmp_path / "home")


def problems(server):
    return " ".join(server.get("/health").json()["problems"])


def vote(server, task):
    return server.signed(
        "v", "POST", "/samples", sample_body(task_id=task, miner_hotkey=hotkey("a"))
    )


def overwrite(path, content):
    """In its place, as a disk does it that loses bytes."""
    with path.open("r+b") as file:
        file.write(content)


def test_an_api_whose_log_is_damaged_says_so_and_goes_on_when_it_is_mended(whole, home):
    home.log_path.parent.mkdir(parents=True)
    content, _ = whole
    home.log_path.write_bytes(content)
    generation = publish(home, {"watermark": 1}, validators=[{"hotkey": hotkey("v")}])
    with Server(API, home) as server:
        before = {path: server.get(path).json() for path in LIVE_READS}
        # All but the first page, which says what the file is.
        overwrite(home.log_path, content[:PAGE] + b"\xff" * (len(content) - PAGE))
        refused = vote(server, 51)
        assert refused.status_code == 503
        assert "Retry-After" in refused.headers
        for path in LIVE_READS:
            # What a connection has read before it need not read again.
            answer = server.get(path)
            assert answer.status_code == 503 or answer.json() == before[path], path
        assert server.get("/weights").json()["snapshot_id"] == generation.snapshot_id
        assert "`leoma fsck`" in problems(server)
        assert "damaged" in problems(server)
        overwrite(home.log_path, content)
        assert vote(server, 51).status_code == 200
        wait_for(lambda: not problems(server))
        # The new one is before those that were there.
        assert server.get(LIVE_READS[0]).json()[1:] == before[LIVE_READS[0]]
        assert server.get(LIVE_READS[1]).json() == before[LIVE_READS[1]]
    keeper = SqliteKeeper(home)
    assert keeper.check() == []
    keeper.close()


def test_damage_that_only_some_reads_meet_is_told_by_health(whole, home):
    content, _ = whole
    home.log_path.parent.mkdir(parents=True)
    # The texts, which neither the head nor an append reads.
    at = content.index(b"Why? Why?") // PAGE * PAGE
    home.log_path.write_bytes(content[:at] + b"\xff" * PAGE + content[at + PAGE :])
    publish(home, {"watermark": 1}, validators=[{"hotkey": hotkey("v")}])
    with Server(API, home) as server:
        assert problems(server) == ""
        assert server.get(LIVE_READS[0]).status_code == 503
        assert "`leoma fsck`" in problems(server)
        assert server.get("/health/ready").status_code == 200
        overwrite(home.log_path, content)
        wait_for(lambda: not problems(server))
        assert server.get(LIVE_READS[0]).status_code == 200


@pytest.mark.parametrize("content", [b"", b"\0" * 8 * PAGE, b"not a database" * 999])
def test_a_log_that_is_something_else_takes_nothing_over_published_tables(home, content):
    publish(home, {"watermark": 9}, validators=[{"hotkey": hotkey("v")}])
    home.log_path.parent.mkdir(parents=True)
    home.log_path.write_bytes(content)
    if content:
        with pytest.raises(LogError, match="damaged"):
            SqliteLog(home)
        return
    SqliteLog(home).close()
    # An empty file becomes an empty log, which ends before what the tables count.
    with Server(API, home) as server:
        assert vote(server, 1).status_code == 503
        assert "log ends" in problems(server)
        assert server.get("/weights").status_code == 200


def rows(home):
    """Publish enough of one table that a part of it is not in memory before somebody asks."""
    verdicts = [
        {
            "miner_hotkey": hotkey("m"), "task_id": number, "latency_ms": number * 7_919 % 100_003,
            "updated_at_ms": number * 104_729 % 2**40,
        }
        for number in range(60_000)
    ]  # fmt: skip
    named = {"validators": [{"hotkey": hotkey("v")}], "miners": [{"hotkey": hotkey("m")}]}
    return publish(home, verdicts=verdicts, **named)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def remove(path):
    path.unlink()


def zero(path):
    overwrite(path, bytes(path.stat().st_size))


RUINS = [cut, empty, remove, zero]


@pytest.mark.parametrize("ruin", RUINS, ids=lambda ruin: ruin.__name__)
def test_what_was_loaded_is_served_when_the_file_is_ruined(home, ruin):
    generation = rows(home)
    with Server(API, home) as server:
        before = {path: server.get(path).content for path in ("/weights", "/miners/list")}
        ruin(generation.path)
        cold = server.get(f"/miners/{hotkey('m')}/tasks")
        # A file that is open is there although its name is gone.
        assert cold.status_code == (200 if ruin is remove else 503)
        assert {path: server.get(path).content for path in before} == before
        wait_for(lambda: "`leoma materialize` makes a new one" in problems(server))
        assert server.get("/health/ready").status_code == 200
        repaired = publish(home, validators=[{"hotkey": hotkey("v")}])
        wait_for(lambda: not problems(server))
        assert server.get("/weights").json()["snapshot_id"] == repaired.snapshot_id
    assert Generations(home).current() == repaired


@pytest.mark.parametrize("ruin", RUINS, ids=lambda ruin: ruin.__name__)
def test_a_ruined_generation_is_told_at_the_start_and_a_run_repairs_it(home, ruin):
    ruin(rows(home).path)
    with Server(API, home) as server:
        for path in ("/weights", "/miners/list", "/health/ready"):
            assert server.get(path).status_code == 503, path
        assert "`leoma materialize` makes a new one" in problems(server)
        assert server.get("/samples/list").status_code == 200
        repaired = publish(home, validators=[{"hotkey": hotkey("v")}])
        wait_for(lambda: not problems(server))
        assert server.get("/weights").json()["snapshot_id"] == repaired.snapshot_id
