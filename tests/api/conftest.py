"""One server a module, on a home of its own, with a generation and an admin."""

from collections.abc import Iterator

import pytest

from api.settings import ApiSettings
from tests.api.servers import Server
from tests.builders import RAO, hotkey, publish
from warehouse.generation import Generation
from warehouse.settings import WarehouseSettings

# Names of keys: three registered validators, one with too little stake, an admin, three miners.
VALIDATORS = {"big": 30_000, "middle": 20_000, "small": 10_000, "poor": 10}
API_SETTINGS = ApiSettings(
    admin_hotkeys=frozenset({hotkey("admin")}), snapshot_poll_seconds=0.05, max_body_size=2 * 2**20
)


def publish_subnet(settings: WarehouseSettings) -> Generation:
    """Publish a small subnet: `old` wins before `young`; `broken` is invalid."""
    return publish(
        settings,
        {
            "winner_uid": 7,
            "winner_hotkey": hotkey("old"),
            "burn_reason": None,
            "watermark": 0,
            "total_samples": 12,
        },
        validators=sorted(
            (
                {
                    "hotkey": hotkey(name),
                    "uid": uid,
                    "stake_rao": stake * RAO,
                    "is_registered": stake >= 5000,
                }
                for uid, (name, stake) in enumerate(VALIDATORS.items())
            ),
            key=lambda row: row["hotkey"],
        ),
        miners=[
            {"hotkey": hotkey("old"), "uid": 7, "block": 100},
            {"hotkey": hotkey("young"), "uid": 8, "block": None, "model_hash": None},
            {
                "hotkey": hotkey("broken"),
                "uid": 9,
                "is_valid": False,
                "invalid_reason": "chute_not_running",
                "last_validated_at_ms": None,
            },
        ],
        scores=[
            {"validator_hotkey": hotkey(validator), "miner_hotkey": hotkey(miner), **figures}
            for validator, miner, figures in (
                ("big", "old", {"total_samples": 4, "total_passed": 3, "score": 0.75}),
                ("big", "young", {"total_samples": 4, "total_passed": 1, "score": 0.25}),
                ("small", "old", {"total_samples": 2, "total_passed": 2, "score": 1.0}),
            )
        ],
        miner_scores=[
            {
                "miner_hotkey": hotkey("old"),
                "tasks_evaluated": 4,
                "passed_count": 3,
                "pass_rate": 0.75,
                "validator_count": 2,
                "is_eligible": True,
            },
            {
                "miner_hotkey": hotkey("young"),
                "tasks_evaluated": 4,
                "passed_count": 1,
                "pass_rate": 0.25,
            },
            {"miner_hotkey": hotkey("unjudged"), "validator_count": 0, "tasks_evaluated": 0},
        ],
        verdicts=[
            {"miner_hotkey": hotkey("old"), "task_id": 4, "latency_ms": None},
            {"miner_hotkey": hotkey("old"), "task_id": 3, "is_passed": False},
            {"miner_hotkey": hotkey("young"), "task_id": 4, "is_passed": False},
        ],
        ranks=[
            {"miner_hotkey": hotkey("old"), "rank": 1, "passed_count": 3, "pass_rate": 0.75},
            {
                "miner_hotkey": hotkey("young"),
                "rank": 2,
                "uid": 8,
                "pass_rate": 0.25,
                "block": None,
                "is_eligible": False,
            },
        ],
        weights=[
            {"miner_hotkey": hotkey("old"), "uid": 7, "pass_rate": 0.75, "weight": 1.0},
            {"miner_hotkey": hotkey("young"), "uid": 8, "pass_rate": 0.25, "weight": 0.0},
        ],
    )


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> WarehouseSettings:
    """A home that the tests of a module share."""
    return WarehouseSettings(leoma_home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def server(module_home: WarehouseSettings) -> Iterator[Server]:
    """A server with the small subnet."""
    publish_subnet(module_home)
    with Server(API_SETTINGS, module_home) as running:
        yield running
