"""Tasks: the latest one, its announcement, and how one came out by the current stakes."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.routes.tasks import aspects, is_passed
from tests.api.conftest import API_SETTINGS, publish_subnet
from tests.api.servers import Server
from tests.builders import RAO, hotkey, publish, sample_body, signed_headers

OLD, YOUNG = hotkey("old"), hotkey("young")


@pytest.fixture
def fresh(warehouse_settings):
    """A server on a home of its own."""
    publish_subnet(warehouse_settings)
    with Server(API_SETTINGS, warehouse_settings) as running:
        yield running


def submit(server, name, **changes):
    response = server.signed(name, "POST", "/samples", sample_body(**changes))
    assert response.status_code == 200, response.text
    return response.json()


def announce(server, task_id, **signing):
    return server.signed("admin", "POST", "/tasks", {"task_id": task_id}, **signing)


def test_latest_task(fresh):
    assert fresh.get("/tasks/latest").status_code == 404
    submit(fresh, "big", task_id=9)
    submit(fresh, "big", task_id=3)
    submit(fresh, "big", task_id=..., sample_id="legacy")
    assert fresh.get("/tasks/latest").json() == {"task_id": 9}
    assert announce(fresh, 4).json() == {"task_id": 4}
    assert fresh.get("/tasks/latest").json() == {"task_id": 4}


def test_announcements_never_go_backwards(fresh):
    for task_id, status in ((5, 200), (5, 200), (4, 409), (0, 409), (6, 200), (2**63 - 1, 200)):
        assert announce(fresh, task_id).status_code == status
    assert fresh.get("/tasks/latest").json() == {"task_id": 2**63 - 1}


def test_announcement_that_goes_backwards_says_where_we_are(fresh):
    announce(fresh, 5)
    assert "5" in announce(fresh, 4).json()["detail"]


@pytest.mark.parametrize(
    "body", [{}, {"task_id": None}, {"task_id": -1}, {"task_id": 2**63}, {"task_id": "1"}, [], 5]
)
def test_announcement_outside_the_schema(server, body):
    response = server.signed("admin", "POST", "/tasks", body)
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][0] == "body"


def test_announcement_is_seen_by_every_worker(warehouse_settings):
    publish_subnet(warehouse_settings)
    with (
        Server(API_SETTINGS, warehouse_settings) as one,
        Server(API_SETTINGS, warehouse_settings) as other,
    ):
        announce(one, 5)
        assert other.get("/tasks/latest").json() == {"task_id": 5}
        refused = other.signed("big", "POST", "/samples", sample_body(task_id=6))
        assert refused.status_code == 400


@pytest.mark.parametrize("scheme", [1, 2])
def test_announcement_sent_again_is_409(fresh, scheme):
    body = json.dumps({"task_id": 5}).encode()
    headers = signed_headers("admin", body, method="POST", path="/tasks", scheme=scheme)
    statuses = [
        fresh.http.post("/tasks", content=body, headers=headers).status_code for _ in range(3)
    ]
    assert statuses == [200, 409, 409]


def test_task_detail(fresh):
    submit(fresh, "big", task_id=4, miner_hotkey=OLD, passed=False, latency_ms=10, prompt="first")
    submit(fresh, "middle", task_id=4, miner_hotkey=OLD, latency_ms=20)
    last = submit(fresh, "small", task_id=4, miner_hotkey=OLD, latency_ms=None, prompt="last")
    other = submit(fresh, "big", task_id=4, miner_hotkey=YOUNG, prompt="newest")
    assert fresh.get("/tasks/4").json() == {
        "task_id": 4,
        "description": "newest",
        "s3_prefix": "4",
        "first_frame_path": "4/first_frame.png",
        "original_clip_path": "4/original_clip.mp4",
        "first_frame_url": None,
        "original_clip_url": None,
        "miner_count": 2,
        "validator_count": 3,
        "miners": sorted(
            [
                {  # 30,000 against 20,000 + 10,000: a tie fails
                    "miner_hotkey": OLD,
                    "passed": False,
                    "validator_count": 3,
                    "latency_ms": 20,
                    "updated": last["evaluated_at"],
                },
                {
                    "miner_hotkey": YOUNG,
                    "passed": True,
                    "validator_count": 1,
                    "latency_ms": 1500,
                    "updated": other["evaluated_at"],
                },
            ],
            key=lambda row: row["miner_hotkey"],
        ),
    }


def test_task_detail_of_a_miner(fresh):
    artifacts = json.dumps({"aspect_scores": {"motion": 7}, "overall_score": 8, "other": [1]})
    one = submit(
        fresh, "big", task_id=4, miner_hotkey=OLD, latency_ms=10, generated_artifacts=artifacts
    )
    two = submit(fresh, "small", task_id=4, miner_hotkey=OLD, passed=False, latency_ms=None)
    submit(fresh, "admin", task_id=4, miner_hotkey=OLD, passed=False)
    answer = fresh.get(f"/tasks/4/miner/{OLD}").json()
    validators = {row["validator_hotkey"]: row for row in answer.pop("validators")}
    assert answer == {
        "task_id": 4,
        "miner_hotkey": OLD,
        "description": "A red kite over a grey sea",
        "s3_prefix": "4",
        "first_frame_path": "4/first_frame.png",
        "original_clip_path": "4/original_clip.mp4",
        "generated_video_path": f"4/generated_videos/{OLD}.mp4",
        "first_frame_url": None,
        "original_clip_url": None,
        "generated_video_url": None,
        "final_passed": True,
        "latency_ms": 1500,
    }
    assert validators[hotkey("big")] == {
        "validator_hotkey": hotkey("big"),
        "passed": True,
        "stake": 30_000.0,
        "evaluated_at": one["evaluated_at"],
        "confidence": 80,
        "reasoning": "The kite moves as in the clip.",
        "aspect_scores": {"motion": 7},
        "overall_score": 8,
    }
    assert validators[hotkey("small")]["evaluated_at"] == two["evaluated_at"]
    # An admin's sample is stored, and weighs nothing.
    assert validators[hotkey("admin")]["stake"] == 0.0


def test_resubmission_flips_the_verdict(fresh):
    for passed in (True, False, True):
        submit(fresh, "big", task_id=4, miner_hotkey=OLD, passed=passed)
        assert fresh.get(f"/tasks/4/miner/{OLD}").json()["final_passed"] is passed


def test_verdict_follows_the_current_stakes(fresh, warehouse_settings):
    submit(fresh, "big", task_id=4, miner_hotkey=OLD, passed=True)
    submit(fresh, "small", task_id=4, miner_hotkey=OLD, passed=False)
    assert fresh.get("/tasks/4").json()["miners"][0]["passed"] is True
    # `big` leaves, and its stake goes with it; `poor` stays below the minimum.
    later = publish(
        warehouse_settings,
        validators=[
            {"hotkey": hotkey("poor"), "stake_rao": 900_000 * RAO, "is_registered": False},
            {"hotkey": hotkey("small"), "stake_rao": 6_000 * RAO},
        ],
    )
    deadline = time.monotonic() + 2
    while fresh.get("/health").json()["snapshot_id"] != later.snapshot_id:
        assert time.monotonic() < deadline
    answer = fresh.get(f"/tasks/4/miner/{OLD}").json()
    assert answer["final_passed"] is False
    stakes = {row["validator_hotkey"]: row["stake"] for row in answer["validators"]}
    assert stakes == {hotkey("big"): 0.0, hotkey("small"): 6_000.0}


def test_a_task_of_made_up_miners_has_an_end(fresh, monkeypatch, caplog):
    for number in range(5):
        submit(fresh, "big", task_id=4, miner_hotkey=hotkey(f"made up {number}"))
    assert fresh.get("/tasks/4").json()["miner_count"] == 5
    monkeypatch.setattr("api.history.TASK_ROWS_MAX", 3)
    assert fresh.get("/tasks/4").json()["miner_count"] == 3
    assert "not all are shown" in caplog.text


def test_tasks_without_samples(server):
    assert server.get("/tasks/77").status_code == 404
    assert server.get(f"/tasks/77/miner/{OLD}").status_code == 404


@pytest.mark.parametrize("task_id", ["x", "-1", str(2**63), "9" * 50, "1.5", "%00"])
def test_task_id_out_of_range(server, task_id):
    for path in (f"/tasks/{task_id}", f"/tasks/{task_id}/miner/{OLD}"):
        answer = server.get(path)
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("task_id: ")


def test_half_of_the_stake_is_not_enough():
    assert not is_passed([(5, True), (5, False)])
    assert is_passed([(5 * 10**18 + 1, True), (5 * 10**18, False)])
    assert not is_passed([(0, True)])
    assert not is_passed([])


@given(st.lists(st.tuples(st.integers(0, 2**63), st.booleans())))
def test_verdict_is_more_than_half_in_any_order(votes):
    stake = sum(vote for vote, _ in votes)
    expected = sum(vote for vote, passed in votes if passed) > stake - sum(
        vote for vote, passed in votes if passed
    )
    assert is_passed(votes) is is_passed(votes[::-1]) is expected


@pytest.mark.parametrize(
    ("artifacts", "expected"),
    [
        (None, (None, None)),
        ("", (None, None)),
        ("see the notes", (None, None)),
        ("[1]", (None, None)),
        ("null", (None, None)),
        ("{}", (None, None)),
        ('{"aspect_scores": {}, "overall_score": 0}', ({}, 0)),
        ('{"aspect_scores": {"a": 1}}', ({"a": 1}, None)),
        ('{"aspect_scores": {"a": 1.5}, "overall_score": 3}', (None, 3)),
        ('{"aspect_scores": {"a": true}, "overall_score": true}', (None, None)),
        ('{"aspect_scores": {"a": "1"}, "overall_score": "8"}', (None, None)),
        ('{"aspect_scores": [1], "overall_score": 8.0}', (None, None)),
        ('{"overall_score": 99999999999999999999999999}', (None, None)),
        (f'{{"overall_score": {2**63}}}', (None, None)),
        ('{"overall_score": NaN}', (None, None)),
        ('{"overall_score": 1, "aspect_scores": {"\\ud800": 1}}', (None, None)),
        ("[" * 8000, (None, None)),
        ('{"aspect_scores":' * 400 + "1" + "}" * 400, (None, None)),
    ],
)
def test_aspects_out_of_whatever_a_validator_wrote(artifacts, expected):
    assert aspects(artifacts) == expected


@given(st.text())
def test_aspects_never_raise(text):
    aspects(text)
