"""`make bench-hh-rlhf`: real comparisons through the product: imported and trained on from the command line.

A small Llama with new weights learns from a sample of hh-rlhf (a few hundred pairs). Nobody should expect much: the
table says what it reached beside its floors. PAIRWRIGHT_TEST_DATA names the folder with the public data sets.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from app.core.agreement import wilson
from app.core.pairing import pairs_of
from app.core.records import PreferenceRecord, RunDir, RunResult
from app.core.vocabulary import Split
from app.rehearsal.floors import BagOfWords, accuracy
from app.rehearsal.installation import Installation
from benchmarks.report import write

SETTINGS = (
    "kind=head",
    "initialise=scratch",
    "pooling=mean",
    "learning_rate=0.0005",
    "epochs=3",
    "max_length=512",
    "bad_rows=drop",
)


def main() -> None:
    """Serve, import, train, and put the held-out accuracy beside its floors."""
    file = Path(os.environ["PAIRWRIGHT_TEST_DATA"]) / "hh-rlhf" / "harmless_sample.jsonl"
    with (
        tempfile.TemporaryDirectory(prefix="pairwright-hh-", ignore_cleanup_errors=True) as scratch,
        Installation(Path(scratch), print, {"PAIRWRIGHT_STARTER": "tiny"}) as product,
    ):
        product.wait_for_starter()
        print(command(product, "import", "preferences", str(file)))
        said = command(product, "train", "reward", *(word for s in SETTINGS for word in ("--set", s)), "--wait")
        print(said)
        newest = max(product.home.glob("runs/*/data/preferences.jsonl"), key=lambda path: path.stat().st_mtime)
        directory = RunDir(newest.parent.parent)
        metrics = RunResult.model_validate_json(directory.result.read_text()).metrics
        records = [PreferenceRecord.model_validate_json(line) for line in newest.read_text("utf-8").splitlines()]
    floor, pairs = bag_of_words(records)
    low, high = wilson(floor * pairs, pairs)
    rows = [
        ("Train pairs, held-out pairs", f"{metrics['pairs_train']}, {metrics['heldout_n']}", ""),
        (
            "Held-out accuracy",
            _interval(metrics["heldout_accuracy"], metrics["heldout_low"], metrics["heldout_high"]),
            "",
        ),
        ("Train accuracy", f"{metrics['train_accuracy']:.3f}", ""),
        ("Floor: bag of words on the same judgments", _interval(floor, low, high), ""),
        ("Floor: longer wins", f"{metrics['longer_wins']:.3f}", ""),
    ]
    note = f"Head with new weights in the tiny starter's shape, {', '.join(SETTINGS)}; hh-rlhf, harmless sample."
    write("hh-rlhf", {"metrics": metrics, "bag_of_words": floor}, rows, note)
    for what, measured, _ in rows:
        print(f"{what}: {measured}")


def command(product: Installation, *words: str) -> str:
    """One command of the product on its data folder; what it printed."""
    environment = os.environ | {"PAIRWRIGHT_HOME": str(product.home)}
    done = subprocess.run(
        [sys.executable, "-m", "app", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"pairwright {' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def bag_of_words(records: list[PreferenceRecord]) -> tuple[float, int]:
    """Held-out accuracy of the floor trained on the same judgments, and its number of pairs."""
    sides: dict[Split, list[tuple[str, str]]] = {Split.TRAIN: [], Split.HELDOUT: []}
    for record in records:
        sides[record.split] += [(record.completions[a], record.completions[b]) for a, b in pairs_of(record.tiers)]
    bag = BagOfWords(*map(list, zip(*sides[Split.TRAIN], strict=True)))
    chosen, rejected = map(list, zip(*sides[Split.HELDOUT], strict=True))
    return accuracy(bag.margin(chosen, rejected), [1.0] * len(chosen)), len(chosen)


def _interval(value: float | int | str | None, low: object, high: object) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
