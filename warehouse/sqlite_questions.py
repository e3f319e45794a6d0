"""The log's questions in SQL, and what types their answers have. `sqlite_reads` asks them."""

from types import NoneType

Types = type | tuple[type, ...]
NUMBER_OR_NONE = (int, NoneType)
VOTE_TYPES = (
    int, int, str, str, NUMBER_OR_NONE, str, int, NUMBER_OR_NONE, NUMBER_OR_NONE
)  # fmt: skip
BY_VALIDATOR = "s.validator_id = (SELECT id FROM hotkeys WHERE hotkey = :validator)"
ABOUT_MINER = "s.miner_id = (SELECT id FROM hotkeys WHERE hotkey = :miner)"
# LEFT JOIN keeps the order of the tables: samples first. And a sample whose texts or hotkeys cannot
# be found is damage; with another join it would not be there.
JOINED = """
    LEFT JOIN sample_texts AS t ON t.seq = s.seq
    LEFT JOIN hotkeys AS v ON v.id = s.validator_id
    LEFT JOIN hotkeys AS m ON m.id = s.miner_id
"""
# A newer version of the same (task, miner, validator) hides a sample. The index is named because
# the planner picks another one, which takes a hundred times as long.
IS_CURRENT = """
    NOT EXISTS (
        SELECT 1 FROM samples AS n INDEXED BY samples_version
        WHERE n.task = s.task AND n.miner_id = s.miner_id
        AND n.validator_id = s.validator_id AND n.seq > s.seq
    )
"""
# Samples leave SQLite as one JSON array, in one step: Python lets go of its lock for every step, so
# a page of two hundred rows would wait two hundred times for whoever else wants it, which took as
# long again as reading did.
TASK_ID = "iif(typeof(s.task) = 'integer', s.task, NULL)"
IS_PASSED = "json(iif(s.passed, 'true', 'false'))"
# In the order of `StoredSample`.
ROW = f"""
    json_array(
        s.seq, s.received_at_ms, v.hotkey, m.hotkey, {TASK_ID}, t.sample_id, {IS_PASSED},
        s.confidence, s.latency_ms, t.prompt, t.s3_bucket, t.s3_prefix, t.reasoning,
        t.generated_artifacts
    )
"""
# With the names that the API's clients know.
TOLD = f"""
    json_object(
        'id', s.seq, 'sample_id', t.sample_id, 'validator_hotkey', v.hotkey,
        'miner_hotkey', m.hotkey, 'prompt', t.prompt, 's3_bucket', t.s3_bucket,
        's3_prefix', t.s3_prefix, 'passed', {IS_PASSED}, 'confidence', s.confidence,
        'reasoning', t.reasoning,
        'evaluated_at', strftime('%Y-%m-%dT%H:%M:%fZ', s.received_at_ms / 1000.0, 'unixepoch'),
        'task_id', {TASK_ID}, 'latency_ms', s.latency_ms
    )
"""
# A record of damaged bytes may hold anything: nothing of another type was written by us.
TEXTS_OF_SAMPLE = ("v.hotkey", "m.hotkey", "t.sample_id", "t.prompt", "t.s3_bucket", "t.s3_prefix")
AS_DECLARED = " AND ".join(
    [
        *(f"typeof({column}) = 'text'" for column in TEXTS_OF_SAMPLE),
        # Until the year 9999, beyond which an instant has no text.
        "s.received_at_ms BETWEEN 0 AND 253402300799999",
        *(f"typeof(s.{column}) = 'integer'" for column in ("received_at_ms", "passed")),
        *(f"typeof(s.{column}) IN ('integer', 'null')" for column in ("confidence", "latency_ms")),
        *(f"typeof(t.{name}) IN ('text', 'null')" for name in ("reasoning", "generated_artifacts")),
    ]
)
# Samples can leave the log by retention, their seqs never come again: the greatest of all is the
# head.
HEAD = """
    SELECT max(
        coalesce((SELECT max(seq) FROM samples), 0), coalesce((SELECT max(seq) FROM events), 0),
        (SELECT dropped_through FROM retention)
    )
"""


def _at_once(shape: str, source: str, whole: str = "TRUE", own: str = "TRUE") -> str:
    """Return the question for how many samples there are and all of them, each as `shape` has it.

    NULL instead of the array where one is not as it was declared, or not as `own` says; and unless
    `whole` holds. SQLite's aggregate takes rows as the subquery gives them; a promise of it would
    cost a sort of wide rows, so tests hold it to it. `source` has a LIMIT: without one each row
    would be rendered twice.
    """
    return f"""
        SELECT count(*), iif(
            count(told) = count(*) AND {whole},
            '[' || coalesce(group_concat(told, ','), '') || ']', NULL
        )
        FROM (SELECT iif({AS_DECLARED} AND {own}, {shape}, NULL) AS told FROM {source})
    """


_NEWEST = f"samples AS s {JOINED} WHERE {IS_CURRENT} ORDER BY s.seq DESC LIMIT :limit"
# Otherwise what is filed would be left out, or told twice.
IS_FILING_KNOWN = f"""
    (
        SELECT count(*) = 1 AND min(typeof(filed_through) = 'integer')
            AND min(filed_through BETWEEN 0 AND ({HEAD}))
        FROM filing
    )
"""


def _of_hotkey(shape: str, table: str, condition: str) -> str:
    """Return the question for the newest samples of one hotkey: those filed in `table`, and others.

    Both parts are merged from their ends, and no further than the limit. The inner limit, of all,
    keeps the planner from making one query of the two, which reads all of a hotkey and sorts them.
    What is filed and cannot be found, or is another hotkey's, is damage.
    """
    source = f"""
        (
            SELECT s.seq FROM samples AS s
            WHERE s.seq > (SELECT filed_through FROM filing) AND {condition}
            UNION ALL SELECT s.seq FROM {table} AS s
            WHERE s.seq <= (SELECT filed_through FROM filing) AND {condition}
            ORDER BY seq DESC LIMIT -1
        ) AS found LEFT JOIN samples AS s ON s.seq = found.seq {JOINED}
        WHERE {IS_CURRENT} LIMIT :limit
    """
    return _at_once(shape, source, IS_FILING_KNOWN, condition)


_OF_TASK = f"samples AS s INDEXED BY samples_version {JOINED} WHERE s.task = :task AND {IS_CURRENT}"
NEWEST, NEWEST_TOLD = _at_once(ROW, _NEWEST), _at_once(TOLD, _NEWEST)
_FILED_BY_VALIDATOR = ("samples_by_validator", BY_VALIDATOR)
_FILED_BY_MINER = ("samples_by_miner", ABOUT_MINER)
OF_VALIDATOR, OF_VALIDATOR_TOLD = (_of_hotkey(one, *_FILED_BY_VALIDATOR) for one in (ROW, TOLD))
OF_MINER, OF_MINER_TOLD = (_of_hotkey(one, *_FILED_BY_MINER) for one in (ROW, TOLD))
OF_SUBMISSION = _at_once(
    ROW,
    f"""samples AS s {JOINED} WHERE s.seq > :seq
        AND s.seq <= :seq + (SELECT sample_count FROM submissions WHERE seq = :seq) LIMIT -1""",
)
OF_TASK = _at_once(ROW, f"{_OF_TASK} LIMIT :limit")
OF_TASK_AND_VALIDATOR = _at_once(ROW, f"{_OF_TASK} AND {BY_VALIDATOR} LIMIT :limit")
OF_TASK_AND_MINER = _at_once(ROW, f"{_OF_TASK} AND {ABOUT_MINER} LIMIT :limit")
OF_TASK_VALIDATOR_AND_MINER = _at_once(
    ROW, f"{_OF_TASK} AND {ABOUT_MINER} AND {BY_VALIDATOR} LIMIT :limit"
)
VOTES_OF_TASK = f"""
    SELECT s.seq, s.received_at_ms, v.hotkey, m.hotkey, {TASK_ID}, CAST(s.task AS TEXT), s.passed,
        s.confidence, s.latency_ms
    FROM samples AS s INDEXED BY samples_version
    LEFT JOIN hotkeys AS v ON v.id = s.validator_id
    LEFT JOIN hotkeys AS m ON m.id = s.miner_id
    WHERE s.task = :task AND {IS_CURRENT} LIMIT :limit
"""
EVENTS = """
    SELECT seq, received_at_ms, kind, subject, detail, admin_hotkey FROM events
    WHERE seq > ? AND seq <= ? ORDER BY seq
"""
HOTKEYS = "SELECT id, hotkey FROM hotkeys WHERE id IN (SELECT value FROM json_each(?))"
# What is stored of the narrow part of a sample, and what types that has. Hotkeys are looked up for
# many at once: for each sample it took as long again as all the rest.
NARROW_PART: dict[str, Types] = {
    "seq": int,
    "validator_id": int,
    "miner_id": int,
    "task": (int, str),
    "received_at_ms": int,
    "passed": int,
    "confidence": NUMBER_OR_NONE,
    "latency_ms": NUMBER_OR_NONE,
}
# Each column as one JSON array, so that Python waits for one step instead of one a sample.
NARROW_COLUMNS = f"""
    SELECT {", ".join(f"json_group_array({name})" for name in NARROW_PART)} FROM (
        SELECT {", ".join(NARROW_PART)} FROM samples
        WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?
    )
"""
TEXTS = """
    SELECT seq, sample_id, prompt, s3_bucket, s3_prefix, reasoning, original_artifacts,
        generated_artifacts, presentation_order, evaluation_signature
    FROM sample_texts WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?
"""
SUBMISSIONS = """
    SELECT seq, received_at_ms, hotkey, scheme, timestamp, nonce, method, path, signature, body,
        sample_count, evaluation_signature, is_evaluation_verified
    FROM submissions WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?
"""
SUBMITTED = "SELECT evaluation_signature, sample_count FROM submissions WHERE seq = ?"
SAMPLES_AS_SUBMITTED = """
    SELECT m.hotkey, iif(typeof(s.task) = 'integer', s.task, NULL), CAST(s.task AS TEXT),
        t.sample_id, s.passed, s.confidence, s.latency_ms, t.prompt, t.s3_bucket, t.s3_prefix,
        t.reasoning, t.original_artifacts, t.generated_artifacts, t.presentation_order,
        t.evaluation_signature
    FROM samples AS s CROSS JOIN sample_texts AS t USING (seq)
    CROSS JOIN hotkeys AS m ON m.id = s.miner_id
    WHERE s.seq > ?1 AND s.seq <= ?1 + ?2 ORDER BY s.seq
"""
# The age comes from an index, and so does the count, which goes only so far.
BACKLOG = """
    SELECT (SELECT count(*) FROM (SELECT 1 FROM outbox LIMIT ?)),
        (SELECT min(queued_at_ms) FROM outbox)
"""
LAST_SEQ_BEFORE = """
    SELECT seq + max(sample_count, 1) FROM submissions
    WHERE received_at_ms < ? ORDER BY seq DESC LIMIT 1
"""
