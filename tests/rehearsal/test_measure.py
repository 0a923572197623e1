"""What a rehearsal says of two policies, worked by hand on policies whose every probability is known."""

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.core.configs import SamplingSettings
from app.core.folders import write_folder
from app.core.records import RunDir, RunSpec
from app.core.vocabulary import RunKind
from app.policy.checkpoint import Policy, save_policy
from app.policy.grammar import letters
from app.policy.reward_model import ProbeReward, RewardSettings, save_reward_model
from app.policy.starter import new_starter
from app.rehearsal import baselines, measure, rehearse
from app.rehearsal.measure import Answers, answers, contest, heldout_prompts, logprobs, measure_policies

ROOT = Path(__file__).parents[2]
PROMPT = "My kettle arrived broken. My order number is 4821. Please help."
GOOD = (
    "Hello! I am sorry about the damage. I have found order 4821 for your kettle. "
    "We will send you a new kettle free of charge."
)
COOL = GOOD.replace("Hello! ", "")  # 0.3 less, by the courtesy
WRONG = GOOD.replace("4821", "4822")  # 3 less, by the order number
GARBLED = GOOD + " Blah kettle blah."


def said(*texts: str, logprobs: Sequence[float] = ()) -> Answers:
    return Answers(list(texts), [[] for _ in texts], list(logprobs))


def unigram(chances: Mapping[int, float]) -> Policy:
    """A tiny starter that draws each token by these chances, whatever stands before it.

    The layers add nothing and every embedding is the same, so the head's rows alone are the logits.
    """
    policy = new_starter("tiny")
    model: Any = policy.model
    width, rows = model.config.hidden_size, model.config.vocab_size
    model.config.tie_word_embeddings = False
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        logits = torch.full((rows,), -40.0)
        for token, chance in chances.items():
            logits[token] = math.log(chance)
        model.lm_head.weight = torch.nn.Parameter((logits / width).unsqueeze(1).repeat(1, width))
    return policy


# ---- win rate -----------------------------------------------------------------------------------------------------


def test_the_win_rate_counts_equals_as_halves_with_wilsons_interval() -> None:
    before = said(GOOD, COOL, GOOD, WRONG)
    after = said(GOOD, GOOD, WRONG, COOL)
    # Level, better, worse, better: 2.5 of 4; Wilson's interval of .625 and 4, worked on paper.
    found = contest([PROMPT] * 4, before, after)
    assert found == {
        "win_rate": 0.625,
        "low": pytest.approx(0.21943, abs=1e-4),
        "high": pytest.approx(0.90810, abs=1e-4),
        "n": 4,
    }


def test_turning_the_contest_round_gives_the_other_side_of_it() -> None:
    one, other = said(GOOD, COOL, GOOD), said(COOL, GOOD, WRONG)
    here, there = contest([PROMPT] * 3, one, other), contest([PROMPT] * 3, other, one)
    assert here["win_rate"] + there["win_rate"] == pytest.approx(1.0)
    assert here["low"] + there["high"] == pytest.approx(1.0)


# ---- KL -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eos() -> int:
    return int(new_starter("tiny").tokenizer.eos_token_id)


def test_log_probabilities_of_answers_by_hand(eos: int) -> None:
    policy = unigram({20: 0.5, 21: 0.25, eos: 0.25})
    found = logprobs(policy, [PROMPT] * 3, [[20, 21, eos], [eos], [20, 20, 20, 20, 20, eos]], temperature=1.0)
    half, quarter = math.log(0.5), math.log(0.25)
    assert found == pytest.approx([half + 2 * quarter, quarter, 5 * half + quarter], abs=1e-4)
    # At temperature 1/2 chances are squared and shared out anew: 1/4, 1/16, 1/16 of 6/16.
    [cold] = logprobs(policy, [PROMPT], [[20, eos]], temperature=0.5)
    assert cold == pytest.approx(math.log(2 / 3) + math.log(1 / 6), abs=1e-4)


def test_what_is_drawn_carries_its_own_log_probability(eos: int) -> None:
    policy = unigram({20: 0.5, 21: 0.25, eos: 0.25})
    drawn = answers(policy, [PROMPT] * 40, SamplingSettings(), seed=4)
    chance = {20: math.log(0.5), 21: math.log(0.25), eos: math.log(0.25)}
    assert drawn.logprobs == pytest.approx([sum(chance[t] for t in ids) for ids in drawn.ids], abs=1e-3)
    assert drawn.logprobs == pytest.approx(logprobs(policy, [PROMPT] * 40, drawn.ids, 1.0), abs=1e-3)


def test_the_kl_of_two_policies_is_the_mean_log_ratio_of_the_new_ones_answers(eos: int) -> None:
    sft, ppo = unigram({20: 0.5, 21: 0.25, eos: 0.25}), unigram({20: 0.25, 21: 0.5, eos: 0.25})
    ids = [[20, 21, eos], [21, 21, eos], [eos]]
    prompts = [PROMPT] * 3
    after = Answers([GOOD] * 3, ids, logprobs(ppo, prompts, ids, 1.0))
    figures = measure_policies(prompts, said(GOOD, GOOD, GOOD), after, logprobs(sft, prompts, ids, 1.0))
    # A 20 costs log 2, a 21 brings it, the end is level: 0, 2 log 2 and 0.
    assert figures["kl"] == pytest.approx(2 * math.log(2) / 3, abs=1e-4)


def test_the_estimate_nears_the_exact_kl(eos: int) -> None:
    """Every token is drawn alike, so KL(sequence) = KL(token) x expected length = 0.39940 x 4."""
    sft, ppo = unigram({20: 0.5, 21: 0.25, eos: 0.25}), unigram({20: 0.125, 21: 0.625, eos: 0.25})
    token = 0.125 * math.log(0.125 / 0.5) + 0.625 * math.log(0.625 / 0.25)
    prompts = [PROMPT] * 600
    drawn = answers(ppo, prompts, SamplingSettings(), seed=1)
    figures = measure_policies(prompts, drawn, drawn, logprobs(sft, prompts, drawn.ids, 1.0))
    assert figures["kl"] == pytest.approx(4 * token, abs=0.25)
    assert figures["ppo_vs_sft"]["win_rate"] == 0.5


def test_taste_and_grammar_are_means_over_the_answers() -> None:
    before, after = said(GOOD, WRONG, logprobs=[0, 0]), said(GOOD, GARBLED, logprobs=[0, 0])
    figures = measure_policies([PROMPT] * 2, before, after, [0.0, 0.0])
    assert figures["taste"] == {"before": pytest.approx(3.4 - 1.5), "after": pytest.approx(3.4 - 0.4)}
    assert figures["grammatical"] == {"before": 1.0, "after": 0.5}


# ---- the documented JSON ------------------------------------------------------------------------------------------

DOCUMENTED = {
    "seed",
    *(
        f"stages_s.{stage}"
        for stage in (
            "start",
            "starter",
            "invitations",
            "judging",
            "reward_model",
            "ppo",
            "promotion",
            "measuring",
            "total",
        )
    ),
    "reward_model.accuracy_noiseless",
    "reward_model.accuracy_noisy",
    "reward_model.longer_wins",
    "reward_model.bag_of_words",
    "ppo_vs_sft.win_rate",
    "ppo_vs_sft.low",
    "ppo_vs_sft.high",
    "ppo_vs_sft.n",
    "kl",
    "taste.before",
    "taste.after",
    "grammatical.before",
    "grammatical.after",
}


class Stage:
    """Stands in for an installation: its files are there, its people and its training take no time."""

    def __init__(self, home: Path) -> None:
        self.home, self.slug, self.url, self.owner = home, "support", "", None
        policy = new_starter("tiny", seed=0)
        for name, seed in (("sft", 0), ("new", 1)):
            made = new_starter("tiny", seed=seed)
            write_folder(home / "checkpoints" / name, lambda folder, made=made: save_policy(folder, *made))
        probe = ProbeReward(RewardSettings(kind="probe", pooling="sum", likelihood=True, layers=[]), policy.model)
        probe.weight.data[0, 0] = 1.0
        write_folder(home / "checkpoints" / "judge", lambda folder: save_reward_model(folder, probe, policy.tokenizer))
        some = letters(5, 60)
        ppo, reward = self.run_dir("ppo"), self.run_dir("reward")
        for run in (ppo, reward):
            run.data.mkdir(parents=True)
        lines = [
            {"prompt_id": str(i), "prompt": [{"role": "user", "content": letter.prompt_text}], "split": "heldout"}
            for i, letter in enumerate(some)
        ]
        ppo.prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
        rng = random.Random(0)
        pairs = [
            line
            | {"judgment_id": str(i), "comparison_id": str(i), "annotator": "a", "split": "train"}
            | {"completions": [some[i].reply_text, some[-1 - i].reply_text], "tiers": [[0], [1]]}
            for i, line in enumerate(lines[:30])
        ]
        for pair in pairs:
            if rng.random() < 0.5:
                pair["completions"].reverse()
        reward.preferences.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def run_dir(self, run: str) -> RunDir:
        return RunDir(self.home / "runs" / run)

    def spec(self, run: str) -> RunSpec:
        folders = {"policy": "../../checkpoints/sft", "reward_model": "../../checkpoints/judge"}
        return RunSpec(run_id=run, kind=RunKind.PPO, seed=0, config={}, **folders)

    def folder(self, run: str, named: str | None) -> Path:
        return (self.run_dir(run).root / str(named)).resolve()

    def wait_for_starter(self) -> None: ...

    def train(self, seed: int) -> tuple[str, str]:
        return "reward", "ppo"

    def train_dpo(self, seed: int, policy: str) -> str:
        assert policy == "sft", "DPO starts from the policy that PPO started from"
        return "new"

    def wait_for_run(self, run: str) -> None: ...

    def promote_newest(self) -> str:
        return "new"


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(tmp_path)
    monkeypatch.setattr(measure, "PROMPTS", 24)
    monkeypatch.setattr(baselines, "PROMPTS", 24)
    monkeypatch.setattr(rehearse, "SAMPLING", SamplingSettings(max_tokens=12))
    monkeypatch.setattr(rehearse, "invite_people", lambda *given: [])
    monkeypatch.setattr(rehearse, "judge_all", lambda *given, **more: [SimpleNamespace(judgments=40)])

    def installed(home: Path, say: Any) -> AbstractContextManager[Stage]:
        return nullcontext(made)

    monkeypatch.setattr(rehearse, "Installation", installed)
    return made


def flat(figures: Mapping[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in figures.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}"}
    return found


def test_the_json_of_a_rehearsal_has_exactly_the_documented_keys(stage: Stage) -> None:
    lines: list[str] = []
    figures = rehearse.rehearse(judgments=40, seed=3, say=lines.append)
    assert flat(json.loads(json.dumps(figures))) == DOCUMENTED
    assert figures["seed"] == 3
    assert figures["ppo_vs_sft"]["n"] == 24
    assert any("PPO wins" in line for line in lines)


def test_the_documents_table_names_every_key() -> None:
    table = (ROOT / "docs" / "rehearsal.md").read_text().split("## The figures")[1].split("make bench-rehearsal")[0]
    named = set(re.findall(r"`([a-z_.]+)`", table))
    leaves = {key.rsplit(".", 1)[-1] for key in DOCUMENTED} | DOCUMENTED | {"stages_s"}
    assert {key for key in DOCUMENTED if key not in named and key.rsplit(".", 1)[-1] not in named} == set()
    assert {name for name in named if name not in leaves} == set()


def test_held_out_prompts_are_drawn_by_the_seed(stage: Stage) -> None:
    path = stage.run_dir("ppo").prompts
    assert heldout_prompts(path, 10, seed=1) == heldout_prompts(path, 10, seed=1)
    assert heldout_prompts(path, 10, seed=1) != heldout_prompts(path, 10, seed=2)
    assert len(heldout_prompts(path, 1000, seed=1)) == 60


# ---- beside PPO ---------------------------------------------------------------------------------------------------


def test_dpo_and_best_of_n_are_measured_beside_ppo_and_not_in_its_json(stage: Stage) -> None:
    rehearsal = rehearse.Rehearsal(stage, seed=3, say=lambda line: None)  # type: ignore[arg-type]
    with pytest.raises(rehearse.RehearsalError, match="no turn"):
        rehearsal.dpo()
    turn = rehearsal.turn()
    assert "dpo_vs_sft" not in turn
    learnt = rehearsal.dpo()
    assert set(learnt) == {"dpo_vs_sft", "kl", "taste", "grammatical"}
    # The same SFT answers to the same prompts as PPO's.
    assert learnt["taste"]["before"] == turn["taste"]["before"]
    chosen = rehearsal.best_of([4, 2])
    assert list(chosen) == ["2", "4"]
    for n, figures in chosen.items():
        assert set(figures) == {"win_rate", "low", "high", "n", "kl_bound", "grammatical"}
        assert figures["n"] == 24
        assert figures["kl_bound"] == pytest.approx(math.log(int(n)) - (int(n) - 1) / int(n))
