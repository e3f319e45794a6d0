"""The rules once more, slowly: dicts, loops and fractions, for comparison with the Polars rules.

Shares no code with `pipelines` on purpose. Takes rows as dicts, gives rows as dicts in the tables'
order, and reads like the definition of every figure.
"""

from fractions import Fraction


def newest(samples):
    """The newest version per (validator, task, miner)."""
    versions = {}
    for sample in samples:
        key = (sample["validator_hotkey"], sample["task_key"], sample["miner_hotkey"])
        if key not in versions or sample["seq"] > versions[key]["seq"]:
            versions[key] = sample
    return list(versions.values())


def reference(samples, validators, miners, latest_task_id, params):
    """All tables as {name: rows}, and the window and the outcome as tuples."""
    stake = {row["hotkey"]: row["stake_rao"] for row in validators if row["is_registered"]}
    valid = {row["hotkey"]: row for row in miners if row["is_valid"]}
    current = newest(samples)

    verdicts = reference_verdicts(current, stake)
    scores = reference_scores(current, stake, valid)

    seen = [
        sample["task_id"]
        for sample in current
        if sample["task_id"] is not None
        and sample["validator_hotkey"] in stake
        and (latest_task_id is None or sample["task_id"] <= latest_task_id)
    ]
    size = params.task_window
    window = (max(1, max(seen) - size + 1), max(seen)) if seen else None
    figures = reference_figures(verdicts, scores, valid, window, params)
    winner, ranks = reference_ranks(figures, valid, params)
    weights = [
        {
            "miner_hotkey": row["miner_hotkey"],
            "uid": row["uid"],
            "pass_rate": row["pass_rate"],
            "weight": 1.0 if row["miner_hotkey"] == winner else 0.0,
        }
        for row in ranks
    ]
    weights.sort(key=lambda row: (-row["weight"], row["uid"]))
    if winner is not None:
        outcome = (valid[winner]["uid"], winner, None)
    elif window is None or window[1] < size:
        outcome = (0, None, "window_incomplete")
    else:
        outcome = (0, None, "no_rank" if valid else "no_valid_miner")
    return {
        "verdicts": verdicts,
        "scores": scores,
        "window": window,
        "miner_scores": figures,
        "ranks": ranks,
        "weights": weights,
        "outcome": outcome,
    }


def reference_verdicts(current, stake):
    by_task = {}
    for sample in current:
        if sample["task_id"] is not None:
            by_task.setdefault((sample["miner_hotkey"], sample["task_id"]), []).append(sample)
    rows = []
    for (hotkey, task_id), votes in sorted(
        by_task.items(), key=lambda item: (item[0][0], -item[0][1])
    ):
        votes.sort(key=lambda vote: vote["seq"])
        passed = sum(stake.get(v["validator_hotkey"], 0) for v in votes if v["is_passed"])
        total = sum(stake.get(v["validator_hotkey"], 0) for v in votes)
        latencies = [v["latency_ms"] for v in votes if v["latency_ms"] is not None]
        rows.append(
            {
                "miner_hotkey": hotkey,
                "task_id": task_id,
                "is_passed": total > 0 and Fraction(passed, total) > Fraction(1, 2),
                "stake_passed_rao": passed,
                "stake_total_rao": total,
                "validator_count": len(votes),
                "latency_ms": latencies[-1] if latencies else None,
                "updated_at_ms": max(v["received_at_ms"] for v in votes),
            }
        )
    return rows


def reference_scores(current, stake, valid):
    by_pair = {}
    for sample in current:
        if sample["validator_hotkey"] in stake and sample["miner_hotkey"] in valid:
            pair = (sample["validator_hotkey"], sample["miner_hotkey"])
            by_pair.setdefault(pair, []).append(sample)
    return [
        {
            "validator_hotkey": validator,
            "miner_hotkey": hotkey,
            "total_samples": len(judged),
            "total_passed": sum(s["is_passed"] for s in judged),
            "score": sum(s["is_passed"] for s in judged) / len(judged),
            "updated_at_ms": max(s["received_at_ms"] for s in judged),
        }
        for (validator, hotkey), judged in sorted(by_pair.items())
    ]


def reference_figures(verdicts, scores, valid, window, params):
    rows = []
    for hotkey in sorted(valid):
        outcomes = [
            verdict["is_passed"]
            for verdict in verdicts
            if window
            and verdict["miner_hotkey"] == hotkey
            and window[0] <= verdict["task_id"] <= window[1]
        ]
        completeness = Fraction(len(outcomes), params.task_window)
        rows.append(
            {
                "miner_hotkey": hotkey,
                "tasks_evaluated": len(outcomes),
                "passed_count": sum(outcomes),
                "pass_rate": sum(outcomes) / len(outcomes) if outcomes else 0.0,
                "completeness": len(outcomes) / params.task_window,
                "validator_count": sum(entry["miner_hotkey"] == hotkey for entry in scores),
                "is_eligible": window is not None
                and window[1] >= params.task_window
                and completeness >= params.completeness_threshold,
            }
        )
    return rows


def reference_ranks(figures, valid, params):
    def rate(row):
        evaluated = row["tasks_evaluated"]
        return Fraction(row["passed_count"], evaluated) if evaluated else Fraction(0)

    def age(row):
        block = valid[row["miner_hotkey"]]["block"]
        return (block is None, block or 0, row["miner_hotkey"])

    eligible = sorted((row for row in figures if row["is_eligible"]), key=age)
    dominating = [
        row
        for index, row in enumerate(eligible)
        if all(
            rate(row) >= rate(earlier) + params.dominance_threshold for earlier in eligible[:index]
        )
    ]
    winner = dominating[-1]["miner_hotkey"] if dominating else None
    rest = sorted(
        (
            row
            for row in figures
            if row["miner_hotkey"] != winner and (row["is_eligible"] or row["tasks_evaluated"])
        ),
        key=lambda row: (not row["is_eligible"], -row["passed_count"], row["miner_hotkey"]),
    )
    return winner, [
        {
            "rank": rank,
            "miner_hotkey": row["miner_hotkey"],
            "uid": valid[row["miner_hotkey"]]["uid"],
            "passed_count": row["passed_count"],
            "tasks_evaluated": row["tasks_evaluated"],
            "pass_rate": row["pass_rate"],
            "block": valid[row["miner_hotkey"]]["block"],
            "is_eligible": row["is_eligible"],
        }
        for rank, row in enumerate(dominating[-1:] + rest, start=1)
    ]
