"""Reward models: what they score, that only the prompt and the answer decide it, and how they load elsewhere."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from app.core.errors import Invalid
from app.core.folders import DamagedFolder, write_folder
from app.policy.reading import token_features
from app.policy.reward_model import (
    Calibration,
    HeadReward,
    ProbeReward,
    RewardModel,
    RewardSettings,
    load_reward_model,
    pack,
    save_reward_model,
)
from app.policy.starter import new_starter

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12]]
ANSWERS = [[20, 21, 22, 23, 1], [30, 31, 1]]


def probe(pooling: str = "sum") -> ProbeReward:
    settings = RewardSettings(
        kind="probe", pooling=pooling, likelihood=True, layers=[0, 2], contrast=[[40, 41], [42, 43, 44]], members=2
    )
    model = ProbeReward(settings, new_starter("tiny").model)
    generator = torch.Generator().manual_seed(3)
    for parameter in (model.weight, model.value):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def head(pooling: str = "last", members: int = 1) -> HeadReward:
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        num_labels=1,
    )
    torch.manual_seed(0)
    settings = RewardSettings(kind="head", pooling=pooling, members=members)
    return HeadReward(settings, LlamaForSequenceClassification(config)).eval()


KINDS: list[Callable[[], RewardModel]] = [
    probe,
    lambda: probe("mean"),
    head,
    lambda: head("mean"),
    lambda: head("sum"),
    lambda: head("last", 3),
    lambda: head("mean", 3),
]


@pytest.mark.parametrize("make", KINDS)
def test_what_stands_in_the_padding_changes_nothing(make: Callable[[], RewardModel]) -> None:
    model = make()
    ids, attention, answer = pack(PROMPTS, ANSWERS, model.pad_id)
    other = ids.masked_fill(attention == 0, 99)
    with torch.no_grad():
        assert torch.equal(model(ids, attention, answer), model(other, attention, answer))


@pytest.mark.parametrize("make", KINDS)
def test_a_row_scores_the_same_alone_as_in_company(make: Callable[[], RewardModel]) -> None:
    model = make()
    together = model.score(PROMPTS, ANSWERS)
    alone = torch.cat([model.score([p], [a]) for p, a in zip(PROMPTS, ANSWERS, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("make", KINDS)
def test_the_prompt_matters(make: Callable[[], RewardModel]) -> None:
    model = make()
    ids, attention, answer = pack([[5, 6, 7], [5, 6, 9]], [ANSWERS[0], ANSWERS[0]], model.pad_id)
    with torch.no_grad():
        here, there = model(ids, attention, answer).tolist()
    assert abs(here - there) > 1e-4


@pytest.mark.parametrize("make", KINDS)
def test_a_saved_model_scores_the_same_to_the_last_digits(make: Callable[[], RewardModel], tmp_path: Path) -> None:
    model = make()
    model.settings = model.settings.model_copy(update={"offset": 0.25, "scale": 2.0, "tie_threshold": 0.5})
    tokenizer = new_starter("tiny").tokenizer
    write_folder(tmp_path / "r", lambda folder: save_reward_model(folder, model, tokenizer))
    loaded = load_reward_model(tmp_path / "r")
    assert loaded.settings == model.settings
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    # The same weights elsewhere in memory: a product of few rows may round otherwise.
    close = {"atol": 1e-6, "rtol": 0.0}
    torch.testing.assert_close(loaded.score(PROMPTS, ANSWERS), model.score(PROMPTS, ANSWERS), **close)
    ids, attention, _ = pack(PROMPTS, ANSWERS, model.pad_id)
    everywhere = attention.nonzero(as_tuple=True)
    with torch.no_grad():
        torch.testing.assert_close(loaded.values_at(ids, *everywhere), model.values_at(ids, *everywhere), **close)


@pytest.mark.parametrize("make", KINDS)
def test_the_score_is_the_mean_of_the_members(make: Callable[[], RewardModel]) -> None:
    model = make()
    packed = pack(PROMPTS, ANSWERS, model.pad_id)
    with torch.no_grad():
        members, scores = model.members(*packed), model(*packed)
    assert members.shape == (model.settings.members, 2)
    assert members.dtype == torch.float32
    assert torch.equal(members.mean(0), scores)
    if model.settings.members > 1:
        assert float(members.std(0).min()) > 1e-4


@pytest.mark.parametrize("make", KINDS)
def test_pessimism_takes_the_members_spread_off_and_spares_a_single_one(make: Callable[[], RewardModel]) -> None:
    model = make()
    model.settings = model.settings.model_copy(update={"clip": 1e9})
    with torch.no_grad():
        spread = model.members(*pack(PROMPTS, ANSWERS, model.pad_id)).std(0, correction=0)
    bold, careful = model.score(PROMPTS, ANSWERS), model.score(PROMPTS, ANSWERS, pessimism=2.0)
    assert torch.allclose(bold - careful, 2 * spread, atol=1e-4)
    if model.settings.members == 1:
        assert torch.equal(bold, careful)


def test_a_member_is_the_head_of_its_row_alone() -> None:
    ensemble, alone = head(members=3), head()
    alone.head.weight.data.copy_(ensemble.head.weight.data[1:2])
    packed = pack(PROMPTS, ANSWERS, alone.pad_id)
    with torch.no_grad():
        assert torch.allclose(ensemble.members(*packed)[1], alone(*packed), atol=1e-6)


def test_an_ensemble_loads_plainly_as_its_mean_and_says_that_members_do_not(tmp_path: Path) -> None:
    model = head(members=3)
    write_folder(tmp_path / "r", lambda folder: save_reward_model(folder, model, new_starter("tiny").tokenizer))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "r").eval()
    assert plain.config.num_labels == 1
    ids, attention, answer = pack(PROMPTS, ANSWERS, model.pad_id)
    with torch.no_grad():
        theirs = plain(input_ids=ids, attention_mask=attention).logits
        ours, members = model(ids, attention, answer), model.members(ids, attention, answer)
    assert theirs.shape == (2, 1)
    assert torch.allclose(theirs[:, 0], ours, atol=1e-6)
    assert torch.equal(load_reward_model(tmp_path / "r").members(ids, attention, answer), members)
    assert json.loads((tmp_path / "r" / "reward.json").read_text())["members"] == 3
    assert "members do not load plainly" in (tmp_path / "r" / "README.md").read_text()


def test_an_ensemble_without_its_members_is_refused(tmp_path: Path) -> None:
    write_folder(
        tmp_path / "r", lambda folder: save_reward_model(folder, head(members=3), new_starter("tiny").tokenizer)
    )
    (tmp_path / "r" / "manifest.json").unlink()
    (tmp_path / "r" / "reward.safetensors").unlink()
    with pytest.raises(Invalid, match=r"members\.weight is missing"):
        load_reward_model(tmp_path / "r")


def test_the_calibration_is_kept_and_said(tmp_path: Path) -> None:
    model = head()
    calibration = Calibration(temperature=1.25, fitted_on="kept back", pairs=40, ece=0.1, ece_calibrated=0.05)
    model.settings = model.settings.model_copy(update={"calibration": calibration})
    write_folder(tmp_path / "r", lambda folder: save_reward_model(folder, model, new_starter("tiny").tokenizer))
    assert load_reward_model(tmp_path / "r").settings.calibration == calibration
    assert "divided by 1.25, are log-odds" in (tmp_path / "r" / "README.md").read_text()


def test_settings_of_an_older_model_are_read_and_numbers_must_be_numbers() -> None:
    old = '{"schema_version": 1, "kind": "head", "pooling": "last", "members": 1, "offset": 0.5, "scale": 2.0}'
    assert RewardSettings.model_validate_json(old).calibration is None
    with pytest.raises(ValidationError):
        RewardSettings.model_validate_json(old.replace("0.5", "NaN"))


def test_a_reward_is_the_raw_score_less_the_offset_times_the_scale_within_the_clip() -> None:
    model = head()
    ids, attention, answer = pack(PROMPTS, ANSWERS, model.pad_id)
    with torch.no_grad():
        raw = model(ids, attention, answer)
    model.settings = model.settings.model_copy(update={"offset": float(raw[0]), "scale": 10.0, "clip": 0.5})
    first, second = model.score(PROMPTS, ANSWERS).tolist()
    assert first == pytest.approx(0.0, abs=1e-4)
    assert second == pytest.approx(math.copysign(min(0.5, abs(float(raw[1] - raw[0])) * 10), raw[1] - raw[0]), abs=1e-4)


def test_a_last_token_head_loads_plainly_with_the_same_raw_score(tmp_path: Path) -> None:
    model = head()
    tokenizer = new_starter("tiny").tokenizer
    write_folder(tmp_path / "r", lambda folder: save_reward_model(folder, model, tokenizer))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "r", num_labels=1).eval()
    ids, attention, answer = pack(PROMPTS, ANSWERS, model.pad_id)
    with torch.no_grad():
        theirs = plain(input_ids=ids, attention_mask=attention).logits[:, 0]
        ours = model(ids, attention, answer)
    assert torch.allclose(theirs, ours, atol=1e-6)
    assert "loads plainly" in (tmp_path / "r" / "README.md").read_text()


def test_a_probe_says_that_it_does_not_load_plainly(tmp_path: Path) -> None:
    write_folder(tmp_path / "r", lambda folder: save_reward_model(folder, probe(), new_starter("tiny").tokenizer))
    assert "does not load plainly" in (tmp_path / "r" / "README.md").read_text()


def test_mean_pooling_averages_the_answers_token_scores() -> None:
    model = head("mean")
    ids, attention, answer = pack(PROMPTS, ANSWERS, model.pad_id)
    with torch.no_grad():
        tokens = model.values_at(ids, torch.tensor([1, 1, 1]), torch.tensor([5, 6, 7]))
        assert model(ids, attention, answer)[1].item() == pytest.approx(tokens.mean().item(), abs=1e-6)


def test_an_answer_that_fits_another_prompt_as_well_tells_nothing_about_this_one() -> None:
    half, tenth = math.log(0.5), math.log(0.1)
    chosen = torch.tensor([half, half, tenth])
    features = token_features(chosen, torch.tensor([0.0, 0.0, 0.0]), chosen, torch.tensor([half, tenth, half]))
    information = features[:, 5].tolist()
    assert information == pytest.approx([0.0, 1.609438, -1.609438], abs=1e-6)
    assert features[:, 7].tolist() == pytest.approx([0.0, 0.0, -1.609438], abs=1e-6)  # the part below 0, above -3
    assert features[:, 2].tolist() == pytest.approx([0.693147, 0.693147, 2.302585], abs=1e-6)  # surprise


def test_the_contrast_is_the_likelihood_under_the_other_prompts() -> None:
    model = probe()
    ids, _, answer = pack(PROMPTS[:1], ANSWERS[:1], model.pad_id)
    found = model.reader._elsewhere(model.language_model, ids, answer, first=2)
    sums = []
    for other in model.settings.contrast:
        rows, _, _ = pack([other], [ANSWERS[0]], model.pad_id)
        logprobs = model.language_model(input_ids=rows).logits.log_softmax(-1)[0]
        places = range(len(other) - 1, len(other) + 4)
        sums.append(torch.stack([logprobs[t, rows[0, t + 1]] for t in places]))
    expected = torch.stack(sums).exp().mean(0).log()
    assert torch.allclose(found[0], expected, atol=1e-5)


def test_a_folder_without_reward_json_is_no_reward_model(tmp_path: Path) -> None:
    write_folder(tmp_path / "r", lambda folder: save_reward_model(folder, probe(), new_starter("tiny").tokenizer))
    (tmp_path / "r" / "manifest.json").unlink()
    (tmp_path / "r" / "reward.json").unlink()
    with pytest.raises(Invalid, match="not a reward model"):
        load_reward_model(tmp_path / "r")


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    write_folder(tmp_path / "r", lambda folder: save_reward_model(folder, probe(), new_starter("tiny").tokenizer))
    with (tmp_path / "r" / "reward.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(DamagedFolder):
        load_reward_model(tmp_path / "r")
