"""sim.coordination.lookout: what those read who watch a run."""

from __future__ import annotations

import pytest

from sim.coordination.lookout import in_words


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"do": "mask", "machine": "a-0", "vectors": (1,)}, "do mask, machine a-0, vectors 1"),
        ({"do": "mask", "vectors": (0, 2, 3)}, "do mask, vectors 0 2 3"),
        ({"do": "unmask", "vectors": ()}, "do unmask, vectors all"),
        ({"machine": "a-0", "peers": [0, 7]}, "machine a-0, peers 0 7"),
        ({"do": "migrate", "hand_over": True, "fault": ""}, "do migrate, hand_over"),
        ({"do": "migrate", "hand_over": False, "skipped": None}, "do migrate"),
        (
            {"from_peer": 0, "downtime_ms": 3.0625001, "pending_vectors": 0},
            "from_peer 0, downtime_ms 3.0625, pending_vectors 0",
        ),
        ({}, ""),
    ],
)
def test_an_event_is_told_as_one_would_read_it(fields: dict[str, object], words: str) -> None:
    assert in_words(fields) == words
