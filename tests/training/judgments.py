"""Judgments and demonstrations about kettles and lamps, as rows of a run's data."""

from typing import Any

GOOD, BAD = (
    "Hello! I am sorry about the damage. Kind regards, Mia.",
    "Do not write again. Please stop wasting our time.",
)


def preference(i: int, tiers: list[list[int]], split: str = "train", **more: Any) -> dict[str, Any]:
    return {
        "judgment_id": f"j{i}",
        "comparison_id": f"c{i}",
        "prompt_id": f"p{i}",
        "prompt": [{"role": "user", "content": f"My order number is {1000 + i}. Where is my kettle?"}],
        "completions": [GOOD.replace("Mia", ["Mia", "Tom", "Leo"][i % 3]), BAD if i % 2 else BAD[:18]],
        "tiers": tiers,
        "annotator": "a",
        "split": split,
        **more,
    }


def demonstration(i: int) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"Where is my lamp {i}?"}]
    return {"prompt_id": f"d{i}", "prompt": prompt, "completion": GOOD, "split": "train"}


TRAIN = [preference(i, [[0], [1]]) for i in range(24)]
HELD = [preference(i, [[0], [1]], "heldout") for i in range(24, 32)]
DATA = {"preferences.jsonl": TRAIN + HELD, "demonstrations.jsonl": [demonstration(i) for i in range(5)]}
