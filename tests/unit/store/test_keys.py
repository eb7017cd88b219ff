"""Keys: distinct, and each of them a subject the bucket takes."""

from __future__ import annotations

from conveyor_runtime.bus import subjects
from conveyor_runtime.store import keys

RUN = "0197f000-0000-7000-8000-000000000000"


def test_every_key_fits_a_subject_and_none_is_another() -> None:
    made = [
        keys.META,
        keys.resource("t", "n"),
        keys.version("i", 1),
        keys.run(RUN),
        keys.run_input(RUN),
        keys.run_data(RUN, "s", 1),
        keys.run_data(RUN, "s", 1, 1),
        keys.claim(RUN, "s", 1, 0),
        keys.claim(RUN, "s", 1, 1),
        keys.instance("i"),
        keys.driver("d"),
        keys.definition("t"),
    ]
    assert len(set(made)) == len(made)
    assert all(subjects.kv(key).startswith("$KV.cv-state.") for key in made)
