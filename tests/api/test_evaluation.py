"""The evaluation payload is exactly what validators sign."""

import hashlib
import json

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import hotkey, keypair, sample
from warehouse.evaluation import (
    evaluation,
    evaluation_entries,
    evaluation_payload,
    payload_of,
)


def test_entries_have_exactly_the_published_keys():
    assert evaluation_entries([sample(passed=False, reasoning=None)]) == [
        {
            "hotkey": hotkey("miner"),
            "passed": False,
            "status": "failed",
            "confidence": 80,
            "reasoning": None,
            "latency_ms": 1500,
            "original_artifacts": None,
            "generated_artifacts": None,
            "presentation_order": None,
        }
    ]


def test_payload_is_the_digest_of_sorted_json():
    text = (
        '[{"confidence": 80, "generated_artifacts": null, "hotkey": "' + hotkey("miner") + '", '
        '"latency_ms": 1500, "original_artifacts": null, "passed": true, '
        '"presentation_order": null, "reasoning": "na\\u00efve", "status": "passed"}]'
    )
    entries = evaluation_entries([sample(reasoning="naïve")])
    assert json.dumps(entries, sort_keys=True) == text
    assert evaluation_payload(entries) == hashlib.sha256(text.encode()).digest()


texts = st.none() | st.text(max_size=40) | st.text(st.characters(max_codepoint=0x80), max_size=40)


@given(
    st.lists(
        st.builds(
            sample,
            passed=st.booleans(),
            confidence=st.none() | st.integers(0, 100),
            latency_ms=st.none() | st.integers(0, 2**63 - 1),
            reasoning=texts,
            original_artifacts=texts,
            generated_artifacts=texts,
            presentation_order=texts,
        ),
        max_size=3,
    )
)
def test_the_fast_payload_is_the_payload(samples):
    assert payload_of(samples) == evaluation_payload(evaluation_entries(samples))


def test_signature_over_other_samples_does_not_verify():
    samples = [sample(task_id=5), sample(task_id=5, miner_hotkey=hotkey("other"))]
    payload = evaluation_payload(evaluation_entries(samples))
    signature = keypair("big").sign(payload).hex()
    assert evaluation(hotkey("big"), signature, samples).is_verified
    assert evaluation(hotkey("big"), "0x" + signature, samples).is_verified
    assert not evaluation(hotkey("small"), signature, samples).is_verified
    assert not evaluation(hotkey("big"), signature, samples[:1]).is_verified
    assert not evaluation(hotkey("big"), signature, samples[::-1]).is_verified


def test_text_that_is_no_signature_is_kept_and_does_not_verify():
    for text in ("", "abc", "0x", "🪁", "00" * 64):
        assert evaluation(hotkey("big"), text, [sample()]) == (text, False)
