"""The last lines of `study run`."""

import math

from isoflop.study.verification import multiplier_sentence

FOUND = {"value": 1.5, "interval": [1.2, math.inf], "loss": 1.234567, "flops": 1e12}


def test_the_multiplier_or_the_reason_why_there_is_none() -> None:
    said = multiplier_sentence({"multiplier": FOUND, "multiplier_missing": ""})
    assert said == (
        "a dense model needs 1.5 × the FLOPs for the planned loss of 1.2346 (90% interval 1.2 to any number)"
    )
    stored = multiplier_sentence({"multiplier": FOUND | {"interval": [1.2, None]}, "multiplier_missing": ""})
    assert stored == said  # JSON knows no infinity
    assert "interval" not in multiplier_sentence({"multiplier": FOUND | {"interval": None}, "multiplier_missing": ""})
    said = multiplier_sentence({"multiplier": None, "multiplier_missing": "the law of dense is not identified"})
    assert said.endswith("is not known: the law of dense is not identified")
    assert not any(character.isdigit() for character in said)
    assert multiplier_sentence({"multiplier": None, "multiplier_missing": ""}) == ""


def test_a_number_that_nobody_checked_is_not_said() -> None:
    assert multiplier_sentence({"multiplier": FOUND}) == ""
