"""Records that cross the seam refuse what they do not know."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.core.records import PreferenceRecord, RunDir, RunSpec
from app.core.vocabulary import RunKind, Split


def test_a_record_refuses_an_unknown_field_and_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="surprise"):
        RunSpec.model_validate({"run_id": "r", "kind": "sft", "seed": 0, "config": {}, "surprise": 1})
    spec = RunSpec(run_id="r", kind=RunKind.SFT, seed=0, config={})
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 1


def test_a_preference_survives_its_line_of_json() -> None:
    record = PreferenceRecord(
        judgment_id="j",
        comparison_id="c",
        prompt_id="p",
        prompt=[{"role": "user", "content": "Where is my lamp?"}],
        completions=["On its way.", "No."],
        tiers=[[0], [1]],
        annotator="a1",
        split=Split.TRAIN,
    )
    assert PreferenceRecord.model_validate_json(record.model_dump_json()) == record


def test_a_run_directory_has_fixed_names() -> None:
    run = RunDir("somewhere")
    assert run.preferences == Path("somewhere/data/preferences.jsonl")
    assert run.result == Path("somewhere/result.json")
