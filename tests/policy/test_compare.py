"""Policies side by side: what is said of each, by a reward model that anybody can check."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.core.configs import SamplingSettings
from app.core.errors import Invalid
from app.core.folders import write_folder
from app.policy import compare as module
from app.policy.compare import compare, read_prompts
from app.policy.reward_model import ProbeReward, RewardSettings, save_reward_model
from app.policy.starter import new_starter

SHORT = SamplingSettings(max_tokens=8)
TEXTS = [f"Where is order {n}?" for n in range(12)]
PROMPTS = [[{"role": "user", "content": text}] for text in TEXTS]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A probe of the tiny starter that likes answers which the starter finds likely, and long ones not."""
    policy = new_starter("tiny", seed=0)
    model = ProbeReward(RewardSettings(kind="probe", pooling="sum", likelihood=True, layers=[]), policy.model)
    model.weight.data[0, 0] = 0.5  # the log-probability, summed over the answer
    folder = tmp_path_factory.mktemp("judge") / "judge"
    write_folder(folder, lambda partial: save_reward_model(partial, model, policy.tokenizer))
    return folder


@pytest.fixture
def other(root: Path, tmp_path: Path) -> Path:
    """The tiny starter, surer of itself: all logits doubled by its last norm."""
    folder = tmp_path / "other"
    shutil.copytree(root / "one", folder)
    (folder / "manifest.json").unlink()
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 40
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_each_policy_has_its_line_in_order_with_intervals(root: Path, judge: Path, other: Path) -> None:
    base, best2, best4, surer = compare(("v1", root / "one"), {"v2": other}, judge, PROMPTS, [4, 2, 4], SHORT, seed=1)
    assert [base.name, best2.name, best4.name, surer.name] == ["v1", "v1, best of 2", "v1, best of 4", "v2"]
    assert base.reward < best2.reward < best4.reward
    assert (base.kl, base.win_rate, base.kl_bound) == (0.0, None, None)
    assert best4.kl is None
    assert best4.kl_bound == pytest.approx(math.log(4) - 0.75)
    for line in (best2, best4, surer):
        assert line.win_rate is not None
        assert line.win_low is not None
        assert line.win_high is not None
        assert line.win_low < line.win_rate < line.win_high or line.win_rate in (0.0, 1.0)
        assert line.prompts == 12
    # Sharper logits write likelier answers: more reward, and far from the base.
    assert surer.reward > base.reward
    assert surer.kl is not None
    assert surer.kl > 1.0
    assert base.reward_low < base.reward < base.reward_high


def test_a_policy_against_itself_is_a_coin_and_has_no_kl(root: Path, judge: Path) -> None:
    _, again = compare(("v1", root / "one"), {"same": root / "one"}, judge, PROMPTS * 4, [], SHORT, seed=1)
    assert again.kl == pytest.approx(0.0, abs=1e-4)
    assert again.win_rate == pytest.approx(0.5, abs=0.25)  # of 48, from draws of their own


def test_the_figures_are_those_of_the_answers_by_hand(root: Path, judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards 1, 2 and 3 a prompt against 2: best of two has reward 8 / 3 and wins 5 / 6 with equals one half."""
    real = module.candidates

    def fixed(policy, reward_model, prompts, count, sampling, seed):
        pool = real(policy, reward_model, prompts, count, sampling, seed)
        rewards = (
            torch.arange(1.0, count + 1).repeat(len(prompts), 1) if count > 1 else torch.full((len(prompts), 1), 2.0)
        )
        return module.Candidates(pool.answers, rewards)

    monkeypatch.setattr(module, "candidates", fixed)
    base, best2, best3 = compare(("v1", root / "one"), {}, judge, PROMPTS[:3], [2, 3], SHORT, seed=1)
    assert (base.reward, base.reward_low, base.reward_high) == (2.0, 2.0, 2.0)
    assert best2.reward == pytest.approx(8 / 3)
    assert best2.win_rate == pytest.approx((1 * 0.5 + 2 * 1) / 3)
    assert (best3.reward, best3.win_rate) == (pytest.approx(3.0), pytest.approx(1.0))


def test_another_tokenizer_is_refused_by_name(judge: Path, root: Path, tmp_path: Path) -> None:
    policy = new_starter("tiny")
    policy.tokenizer.add_tokens(["zzz"])
    policy.model.resize_token_embeddings(len(policy.tokenizer), mean_resizing=False)
    policy.model.save_pretrained(tmp_path / "odd")
    policy.tokenizer.save_pretrained(tmp_path / "odd")
    with pytest.raises(Invalid, match="other tokens than v9 writes"):
        compare(("v1", root / "one"), {"v9": tmp_path / "odd"}, judge, PROMPTS[:2], [], SHORT, seed=1)


def prompts_file(folder: Path, heldout: int = 3) -> Path:
    rows = [
        {"prompt_id": str(i), "prompt": prompt, "split": "heldout" if i < heldout else "train"}
        for i, prompt in enumerate(PROMPTS)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "prompts.jsonl"


def test_held_out_prompts_are_taken_and_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = prompts_file(tmp_path)
    assert sorted(p[0]["content"] for p in read_prompts(path, 10, seed=0)) == TEXTS[:3]
    assert len(read_prompts(path, 2, seed=0)) == 2
    assert len(read_prompts(prompts_file(tmp_path, heldout=0), 10, seed=0)) == 10
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(Invalid, match=r"Line 13 of prompts\.jsonl"):
        read_prompts(path, 10, seed=0)


def test_by_hand_it_prints_one_json_object_or_why_there_is_none(root: Path, judge: Path, tmp_path: Path) -> None:
    words = ["--base", f"v1={root / 'one'}", "--prompts", str(prompts_file(tmp_path)), "--best-of", "2"]
    words += ["--sampling", '{"max_tokens": 4}']
    command = [sys.executable, "-m", "app.policy.compare", *words, "--reward-model"]
    done = subprocess.run([*command, str(judge)], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert [line["name"] for line in answer["lines"]] == ["v1", "v1, best of 2"]
    assert answer["sampling"]["max_tokens"] == 4
    done = subprocess.run([*command, str(tmp_path / "nowhere")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no model folder nowhere" in json.loads(done.stdout)["message"]
