"""The race's arithmetic: what a step is worth, what its products cost, what the table says."""

import json

import pytest

from benchmarks.training import contest, environment, limit, sweep, tables
from benchmarks.training.scenes import SCENES, STARTER, scene_of

NET = limit.Net(hidden=4, intermediate=8, layers=2, heads=2, kv_heads=1, size=2, vocabulary=10)


class Counts:
    """A clock for which every product takes one second."""

    product = limit.Clock.product
    gradients = limit.Clock.gradients
    batched = limit.Clock.batched

    def _random(self, *shape):
        return shape

    def _time(self, key, work):
        return 1.0


def test_operations_of_a_pass_are_those_worked_by_hand():
    # 6 tokens, 5 of them read. Keys and values, 4x2 each, of 2 layers: 2 layers x 2 x 6 x 16 = 384. The rest of a
    # layer: q and o 4x4, gate, up and down 4x8 = 128 weights: 2 x 6 x 128 = 1536 in the first, 2 x 5 x 128 = 1280 in
    # the last. Head 2 x 5 x 4 x 10 = 400. Attention, half of two products of 4 matrices 3x2x3: 144, in the last layer
    # 5/6 of it.
    read = limit.Read(rows=2, width=3, read=5, head=True, trained=False)
    _, operations = limit.cost(NET, read, Counts())
    assert operations == pytest.approx(384 + 1536 + 1280 + 400 + 144 + 120)
    _, trained = limit.cost(NET, read._replace(trained=True), Counts())
    assert trained == pytest.approx(3 * operations)


def test_sampling_reads_the_prompts_once_and_then_a_column_at_a_time():
    # Prompts: 2 rows of 3, of which the last tokens are read, no head: 384 + 1536 + 2 x 2 x 128 = 512, and attention of
    # 144 + 48. A column of 1 row: 2 x 144 x 2 layers + 2 x 4 x 10, and two products of 2 matrices 1x2 by
    # 2x(3 + 4 / 2): 2 layers x 2 x (2 x 2 x 2 x 5).
    found = limit.decode(NET, Counts(), rows=2, prompt=3, steps=4, alive=1)
    assert found["gflop"] == pytest.approx((384 + 1536 + 512 + 192 + 4 * (576 + 80 + 160)) / 1e9)


@pytest.fixture
def scene(tmp_path, monkeypatch):
    from benchmarks.training import scenes

    monkeypatch.setattr(scenes, "BUILD", tmp_path)
    short = scene_of("starter-quick")
    short.folder.mkdir()
    counts = {"sft": {"0": [[100, 60]] * 6}, "ppo": {"0": [[50, 0]] * 4}}
    (short.folder / "tokens.json").write_text(json.dumps(counts))
    return short


def test_the_first_two_steps_are_not_timed(scene):
    notes = {"seconds": [9.0, 9.0, 1.0, 2.0, 2.0, 3.0], "phases": [{}, {}, *[{"backward": 1.5}] * 4]}
    found = contest.summary(scene, "sft", 0, notes)
    assert found["samples_per_s"] == 4 * 32 / 8
    assert found["tokens_per_s"] == 50
    assert found["phases_s"] == {"backward": 1.5, "the rest": 0.5}


def test_what_was_done_beforehand_is_part_of_every_step(scene):
    notes = {"seconds": [9.0, 9.0, 1.0, 2.0, 2.0, 3.0], "phases": [{}] * 6, "beforehand_s": 6.0}
    assert contest.summary(scene, "sft", 0, notes)["step_s"] == 3.0


def test_ppo_counts_the_tokens_that_were_sampled(scene):
    notes = {"seconds": [5.0, 5.0, 1.0, 1.0], "phases": [{"sample": 0.25}] * 4, "sampled": [7, 7, 30, 50]}
    found = contest.summary(scene, "ppo", 0, notes)
    assert found["tokens_per_s"] == (50 + 50 + 30 + 50) / 2
    assert found["answer_tokens_per_step"] == 40


def test_the_middle_round_counts():
    rounds = [{"step_s": s, "seed": 0, "phases_s": {"update": s / 2}} for s in (1.0, 9.0, 2.0)]
    assert contest.medians(rounds) == {"step_s": 2.0, "phases_s": {"update": 1.0}}


def side(speed, nll):
    figures = {
        "samples_per_s": speed,
        "tokens_per_s": 10 * speed,
        "step_s": 1 / speed,
        "phases_s": {"backward": 0.5 / speed},
        "peak_mib": 600.0,
    }
    return {"median": figures, "rounds": [{"trl": "1.16.0", "notes": {}, "quality": {"nll": nll}}]}


def test_a_row_says_both_speeds_and_what_is_wanted():
    found = {"ours": side(6.0, 1.5), "trl": side(2.0, 1.6), "ratio": 3.0, "shares": {"step": {"ours": 0.5, "trl": 0.2}}}
    rows = tables.rows_of({"starter": {"sft": found}})
    assert rows[0] == (
        "**SFT, starter**, ours against TRL 1.16.0",
        "6.0 against 2.0 demonstrations/s: 3.00 times",
        "at least 2 times",
    )
    assert ("- of what the same matrix products reach alone", "step 50 % (TRL 20 %)", "") in rows
    assert rows[-1] == ("- held-out, 1 seed", "nll 1.500 against 1.600 nats/token", "not above TRL's")


def test_a_side_that_cannot_run_is_named_with_its_reason():
    (row,) = tables.rows_of({"gpu": {"dpo": {"ours_missing": "no setting for a device"}}})
    assert row == ("**DPO, gpu**", "ours: no setting for a device", "")


def test_the_race_takes_the_winner_of_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.report, "RESULTS", tmp_path)
    assert sweep.best("starter", "ppo") == {}
    figures = {"starter": {"ppo": {"best": {"rollout": 16}, "tried": []}}}
    (tmp_path / "training-sweep.json").write_text(json.dumps({"figures": figures}))
    assert sweep.best("starter-quick", "ppo") == {"rollout": 16}
    assert sweep.best("15m", "ppo") == {"rollout": 16}  # where a scene had no sweep, the starter's


def test_trl_waits_as_ours_does_or_as_openmp_does_by_itself():
    assert environment.variables("ours")["OMP_WAIT_POLICY"] == "passive"
    assert "OMP_WAIT_POLICY" not in environment.variables("default")


def test_every_scene_asks_for_equal_minibatches():
    for scene in (*SCENES.values(), STARTER.short("quick", {"sft": 6, "reward": 6, "dpo": 6, "ppo": 4})):
        assert scene.tasks["ppo"]["batch"] % scene.tasks["ppo"]["minibatches"] == 0
        assert (scene.tasks["dpo"]["steps"], scene.tasks["dpo"]["batch"]) == (
            scene.tasks["reward"]["steps"],
            scene.tasks["reward"]["batch"],
        ), "both read the same judgments"
