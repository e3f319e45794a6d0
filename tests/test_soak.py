"""A soak of some seconds: it measures, judges and draws; and it notices what is lost or doubled."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench import soak_report
from warehouse.settings import WarehouseSettings
from warehouse.sqlite_keeper import SqliteKeeper

SECONDS_MAX = 120
TINY = [
    *("--minutes", "0.08", "--samples-per-second", "50", "--reads-per-second", "20"),
    *("--history", "5120", "--sample-seconds", "1", "--run-seconds", "2"),
    *("--runs", "command", "--no-storage"),
]


@pytest.fixture(scope="module")
def soaked(tmp_path_factory):
    root = tmp_path_factory.mktemp("soak")
    options = ["--root", str(root), "--picture", str(root / "picture.svg")]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.bench.soak", *TINY, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=SECONDS_MAX,
        cwd=Path(__file__).parent.parent,
    )
    assert (root / "results.json").exists(), ended.stdout
    return root, ended


def criteria(result):
    return {one.name: one.is_met for one in soak_report.criteria(result)}


def test_a_soak_measures_and_judges(soaked):
    root, ended = soaked
    result = json.loads((root / "results.json").read_text())
    assert result["posts"]["count"] >= 20
    assert result["reads"]["count"] >= 80
    assert result["ledger"]["acknowledged"] == result["ledger"]["stored"] > 100
    assert result["runs"]
    assert {"supervisor", "worker 1", "worker 2"} <= set(result["growth"])
    # Beside other tests it may be slow, but nothing fails.
    judged = criteria(result)
    assert judged["answers other than 2xx"], ended.stdout
    assert judged["acknowledged samples lost or changed"]
    assert judged["samples doubled"]
    assert judged["problems that fsck finds"]
    assert ended.returncode == (not all(one is not False for one in judged.values()))


def test_the_picture_is_of_the_result_alone(soaked):
    root, _ = soaked
    result = json.loads((root / "results.json").read_text())
    soak_report.draw(result, root / "again.svg")
    drawn = (root / "picture.svg").read_bytes()
    assert drawn == (root / "again.svg").read_bytes()
    assert ET.fromstring(drawn).tag.endswith("svg")
    assert b"POST p99" in drawn
    assert str(root).encode() not in drawn


def test_what_is_lost_changed_or_doubled_fails_the_soak(soaked, tmp_path):
    root, _ = soaked
    lines = (root / "load" / "writes.ledger").read_text().splitlines(keepends=True)
    log = SqliteKeeper(WarehouseSettings(leoma_home=root / "home"))
    first = int(lines[0].partition("\t")[0])

    def with_lines(*others):
        path = tmp_path / "ledger"
        path.write_text("".join(others))
        found = soak_report.compared(log, path, first - 2)
        return len(found.lost), len(found.doubled), found.unacknowledged

    try:
        assert with_lines(*lines) == (0, 0, 0)
        lost = lines[0].replace(str(first), str(log.head() + 1), 1)
        assert with_lines(*lines, lost) == (1, 0, 0)
        changed = lines[0].rpartition("\t")[0] + "\t1\n"
        assert with_lines(changed, *lines[1:]) == (1, 0, 0)
        assert with_lines(*lines, lines[0]) == (0, 1, 0)
        assert with_lines(*lines[1:]) == (0, 0, 1)
    finally:
        log.close()


def test_each_criterion_can_fail(soaked):
    root, _ = soaked
    result = json.loads((root / "results.json").read_text())

    def failing(**changes):
        judged = criteria({**result, **changes})
        return {name for name, is_met in judged.items() if is_met is False}

    lost = {**result["ledger"], "lost": 1}
    assert "acknowledged samples lost or changed" in failing(ledger=lost)
    slow = [{**one, "p99_ms": 100.0} for one in result["post_minutes"]]
    assert "POST p99, worst minute" in failing(post_minutes=slow)
    failed = [{**one, "is_ok": False} for one in result["runs"]]
    assert "materialisations" in failing(runs=failed)
    leaking = [
        {
            "at": 10.0 * number,
            "processes": {
                "worker 1": {
                    "pid": 1, "rss_mb": 150 + number, "pss_mb": 150 + number,
                    "handles": 60 + number // 10, "threads": 10,
                }
            },
        }
        for number in range(180)
    ]  # fmt: skip
    assert failing(growth=soak_report.growth(leaking), seconds=1800) >= {
        "worker 1: memory flat after the first fifth",
        "worker 1: fewest handles, middle and last third",
    }
