"""What PPO can be asked for beyond its defaults: LoRA on one backbone, bf16, ensembles, demonstrations, rollouts."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from app.core.configs import PPOConfig
from app.policy.chat import encode_completion, encode_prompt
from app.policy.checkpoint import load_policy
from app.policy.lora import add_adapter, factors, read_adapter
from app.policy.reward_model import HeadReward, ProbeReward, RewardSettings, load_reward_model, save_reward_model
from app.training import logprobs, networks, ppo
from app.training.critic import AdapterValue, Judge, ValueFunction
from app.training.failures import Cancelled, RunFailure
from app.training.learner import Learner
from app.training.ppo import Targets, policy_gradient, train
from app.training.ptx import Demonstrations, ptx_gradient
from app.training.rollout import Episode, MicroBatch
from app.training.run import Run
from tests.training import toy_ppo as toy

Make = Callable[..., Path]
SMALL: dict[str, Any] = {
    "iterations": 2,
    "batch_size": 8,
    "minibatches": 2,
    "micro_batch_size": 3,
    "epochs": 2,
    "max_tokens": 6,
    "evaluation_prompts": 2,
    "sample_prompts": 1,
    "learning_rate": 1e-3,
    "warmup_iterations": 0,
    "value_warmup": 0,
    "beta": 0.1,
    "approx_kl_stop": None,
    "kl_budget": None,
    "threads": 1,
}
LORA = {"lora_rank": 2}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy and reward models by the names `probe`, `head` (of another body) and `lora-head` (on the policy)."""
    root = tmp_path_factory.mktemp("models")
    toy.make_policy(root / "policy")
    tokenizer = load_policy(root / "policy").tokenizer

    def save(name: str, model: Any) -> None:
        (root / name).mkdir()
        save_reward_model(root / name, model, tokenizer)

    unit = {"offset": 0.2, "scale": 1.5}
    generator = torch.Generator().manual_seed(5)
    settings = RewardSettings(kind="probe", pooling="mean", likelihood=True, layers=[0, 2], contrast=[[5, 6]], **unit)
    probe = ProbeReward(settings, load_policy(root / "policy").model)
    for parameter in (probe.weight, probe.value):
        parameter.data.normal_(0, 0.3, generator=generator)
    save("probe", probe)

    load = AutoModelForSequenceClassification.from_pretrained
    for name, seed in (("head", 7), ("lora-head", None)):
        body = load(root / "policy", num_labels=1)
        body.score.weight.data.normal_(0, 0.3, generator=generator)
        if seed is not None:
            body.base_model.load_state_dict({n: t * 1.1 for n, t in body.base_model.state_dict().items()})
        else:
            add_adapter(body, "policy", rank=3, seed=1)
            for parameter in factors(body, "policy").values():
                parameter.data.normal_(0, 0.2, generator=generator)
        save(name, HeadReward(RewardSettings(kind="head", **unit), body))
    return root


DEMONSTRATIONS = [
    {
        "prompt_id": f"d{i}",
        "prompt": [{"role": "user", "content": text}],
        "completion": "Dear customer, thank you." if i % 2 else "Yours, the shop.",
        "split": "heldout" if i == 0 else "train",
    }
    for i, text in enumerate(toy.PROMPTS[:6])
]


@pytest.fixture
def make(make_run: Make, models: Path) -> Make:
    def build(name: str = "run", reward: str = "probe", demonstrations: bool = False, **config: Any) -> Path:
        data: dict[str, Any] = {"prompts.jsonl": toy.prompt_rows(2)}
        data["demonstrations.jsonl"] = DEMONSTRATIONS if demonstrations else []
        folders = {"policy": str(models / "policy"), "reward_model": str(models / reward)}
        return make_run(name, kind="ppo", config={**SMALL, **config}, data=data, **folders)

    return build


def opened(root: Path) -> Run[PPOConfig]:
    run = Run.open(root)
    run.seed_everything()
    return run


def learner_of(root: Path) -> Learner:
    return Learner(opened(root))


def rows(root: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if row["phase"] == "train"]


def final(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root / "final")): p.read_bytes() for p in (root / "final").rglob("*.safetensors")}


def micro_of(learner: Learner) -> MicroBatch:
    batch = learner.read(learner.sample(1), 1, torch.Generator().manual_seed(1)).batch
    return batch.minibatches[0].micro[0]


# ---- every mode keeps what PPO stands on --------------------------------------------------------------------------

MODES: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "recomputed": {"gradient_checkpointing": True},
    "lora on one backbone": {**LORA, "reward": "probe"},
    "lora on one recomputed backbone": {**LORA, "gradient_checkpointing": True, "reward": "probe"},
    "lora beside another body": {**LORA, "reward": "head"},
    "lora with a reward adapter": {**LORA, "reward": "lora-head"},
    "lora, bf16, recomputed": {**LORA, "precision": "bf16", "gradient_checkpointing": True, "reward": "lora-head"},
    "bf16, another body, recomputed": {
        **LORA,
        "precision": "bf16",
        "gradient_checkpointing": True,
        "reward": "head",
    },
    "in chunks": {"chunk": 100},
    "mixed with demonstrations": {"ptx_weight": 0.5, "demonstrations": True},
    "several answers": {"rollouts_per_prompt": 4},
}


@pytest.mark.parametrize("mode", MODES)
def test_at_learning_rate_zero_every_ratio_is_exactly_one_in_every_mode(
    make: Make, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    settings = dict(MODES[mode])
    monkeypatch.setattr(logprobs, "CHUNK", settings.pop("chunk", logprobs.CHUNK))
    root = make(learning_rate=0.0, value_learning_rate=0.0, temperature=0.8, **settings)
    train(opened(root))
    for row in rows(root):
        assert row["policy/ratio_error"] == 0.0
        assert row["policy/approxkl_avg"] == 0.0
        assert row["objective/kl"] == 0.0
        assert row["policy/updates"] == 4
        # The engine samples in fp32 on a CPU.
        assert row["rollout/logprob_gap"] < (0.02 if settings.get("precision") == "bf16" else 1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_a_cancelled_run_goes_on_to_the_same_bits_in_every_mode(
    make: Make, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    settings = dict(MODES[mode])
    monkeypatch.setattr(logprobs, "CHUNK", settings.pop("chunk", logprobs.CHUNK))
    whole, cancelled = (make(name, **settings, kl_budget=1000.0) for name in ("whole", "cancelled"))
    train(opened(whole))
    run = opened(cancelled)
    run.request_stop()
    with pytest.raises(Cancelled):
        train(run)
    torch.rand(3)
    train(Run.open(cancelled))
    assert final(whole) == final(cancelled)
    assert (whole / "result.json").read_text() == (cancelled / "result.json").read_text()


@pytest.mark.parametrize("mode", ["lora on one backbone", "lora with a reward adapter", "recomputed", "in chunks"])
@pytest.mark.parametrize("micro", [1, 8])
def test_gradients_are_the_same_whatever_the_micro_batch_in_every_mode(
    make: Make, monkeypatch: pytest.MonkeyPatch, mode: str, micro: int
) -> None:
    settings = dict(MODES[mode])
    monkeypatch.setattr(logprobs, "CHUNK", settings.pop("chunk", logprobs.CHUNK))

    def gradients(name: str, size: int) -> list[torch.Tensor]:
        learner = learner_of(make(name, micro_batch_size=size, **settings))
        batch = learner.read(learner.sample(1), 1, torch.Generator().manual_seed(1)).batch
        generator = torch.Generator().manual_seed(2)
        parts = [torch.randn(batch.mask.shape, generator=generator) for _ in range(4)]
        targets = Targets(parts[0] * 0.2 - 4.0, parts[1], parts[2], parts[3])
        config = PPOConfig(**{**SMALL, "micro_batch_size": size})
        policy_gradient(learner, batch.minibatches[0], targets, config)
        ppo.value_gradient(learner, batch.minibatches[0], targets, config)
        learnt = [*learner.policy.named_parameters(), *learner.value.named_parameters()]
        return [p.grad for _, p in learnt if p.grad is not None]

    whole, cut = gradients("whole", 100), gradients("cut", micro)
    assert len(whole) == len(cut) > 0
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-3)


# ---- LoRA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["probe", "head", "lora-head"])
def test_judge_and_value_function_start_as_the_reward_model_whoever_owns_the_backbone(
    make: Make, models: Path, reward: str
) -> None:
    learner = learner_of(make(reward=reward, **LORA))
    micro = micro_of(learner)
    whole = load_reward_model(models / reward)
    expected = ValueFunction(whole)(micro)
    assert isinstance(learner.value, AdapterValue)
    torch.testing.assert_close(learner.value(micro), expected, atol=1e-5, rtol=1e-4)
    alone = Judge(whole.requires_grad_(False), 5.0)(micro).scores
    torch.testing.assert_close(learner.judge(micro).scores, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("reward", "backbones"), [("probe", 1), ("lora-head", 1), ("head", 2)])
def test_one_backbone_is_all_four_where_the_reward_model_was_made_from_it(
    make: Make, models: Path, reward: str, backbones: int
) -> None:
    learner = learner_of(make(reward=reward, **LORA))
    parts = [learner.policy, learner.reference, learner.judge._model, learner.value._backbone]  # type: ignore[union-attr]
    embeddings = {id(m.get_input_embeddings().weight) for part in parts for m in part.modules() if _is_transformer(m)}
    assert len(embeddings) == backbones
    assert learner.reference is learner.policy
    learnt = {name for name, _ in learner.value.named_parameters()}
    assert {name.partition(".")[0] for name in learnt} == {"head", "model"}
    trained = sum(p.numel() for p in learner.policy.parameters() if p.requires_grad)
    assert trained < 0.5 * sum(p.numel() for p in learner.policy.parameters())


def _is_transformer(module: nn.Module) -> bool:
    return hasattr(module, "get_input_embeddings") and hasattr(module, "config")


def test_a_reference_of_its_own_is_loaded_beside(make: Make, models: Path, tmp_path: Path) -> None:
    toy.make_policy(tmp_path / "other")
    root = make(**LORA)
    spec = json.loads((root / "spec.json").read_text())
    (root / "spec.json").write_text(json.dumps({**spec, "reference": str(tmp_path / "other")}))
    learner = learner_of(root)
    assert learner.reference is not learner.policy
    assert not any(p.requires_grad for p in learner.reference.parameters())


def test_a_lora_run_leaves_a_merged_policy_and_an_adapter_for_its_base(make: Make, models: Path) -> None:
    root = make(reward="lora-head", iterations=3, learning_rate=2e-2, **LORA)
    learnt: list[Learner] = []
    build = ppo.Learner
    ppo.Learner = lambda run: learnt.append(build(run)) or learnt[-1]  # type: ignore[assignment,misc,func-returns-value,return-value]
    try:
        train(opened(root))
    finally:
        ppo.Learner = build  # type: ignore[misc]
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        live = torch.log_softmax(learnt[0].policy(input_ids=ids).logits, -1)
        plain = AutoModelForCausalLM.from_pretrained(root / "final").eval()
        merged = torch.log_softmax(plain(input_ids=ids).logits, -1)
        base = AutoModelForCausalLM.from_pretrained(models / "policy").eval()
        before = torch.log_softmax(base(input_ids=ids).logits, -1)
        onto = PeftModel.from_pretrained(base, str(root / "final" / "adapter")).eval()
        adapted = torch.log_softmax(onto(input_ids=ids).logits, -1)
    torch.testing.assert_close(merged, live, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(adapted, live, atol=1e-5, rtol=1e-5)
    assert (before - live).abs().max() > 1e-3
    assert load_policy(root / "final").model.config.vocab_size == base.config.vocab_size


def test_the_kl_budget_goes_back_to_the_last_adapter_within_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[float, dict[str, torch.Tensor]]] = []
    read = Learner.read

    def watched(learner: Learner, *rest: Any) -> Any:
        seen = read(learner, *rest)
        adapter = {name: factor.detach().clone() for name, factor in factors(learner.policy, "policy").items()}
        measured.append((seen.sequence_kl, adapter))
        return seen

    monkeypatch.setattr(Learner, "read", watched)
    root = make(iterations=30, learning_rate=0.05, beta=0.0, kl_budget=0.05, schedule="constant", **LORA)
    train(opened(root))
    assert json.loads((root / "result.json").read_text())["metrics"]["stopped_by"] == "kl_budget"
    logged = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    [given_up] = [row["objective/kl"] for row in logged if row["phase"] == "stop"]
    place = next(i for i, (kl, _) in enumerate(measured) if kl == given_up)
    assert given_up > 0.05 >= measured[place - 1][0]
    saved = read_adapter(root / "final" / "adapter").factors
    assert all(torch.equal(saved[name], factor) for name, factor in measured[place - 1][1].items())
    assert any(not torch.equal(saved[name], factor) for name, factor in measured[place][1].items())


def test_with_lora_a_reward_that_anybody_can_check_goes_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "load_reward_model", toy.load_toy)
    root = make(
        reward="policy",
        iterations=20,
        batch_size=32,
        micro_batch_size=32,
        max_tokens=8,
        learning_rate=2e-2,
        value_learning_rate=2e-2,
        beta=0.02,
        lora_rank=8,
        evaluation_prompts=12,
    )
    train(opened(root))
    result = json.loads((root / "result.json").read_text())["metrics"]
    # As in full fine-tuning: the reward is 4 x (share of even tokens - 1/2), less 1 where the end is missing.
    assert result["reward"] > result["reward_before"] + 0.5


# ---- ensembles ----------------------------------------------------------------------------------------------------


def ensemble(folder: Path) -> Any:
    """The toy reward model as two members; the second says 0.3 more where the answer's ids have an odd sum."""
    model = toy.load_toy(folder)

    def members(ids: torch.Tensor, attention: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        one = model(ids, attention, answer)
        return torch.stack([one, one + 0.3 * ((ids * answer).sum(1) % 2)])

    model.members = members
    return model


def test_the_members_spread_is_logged_and_paid_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "load_reward_model", ensemble)
    logged = {}
    for penalty in (0.0, 2.0):
        root = make(f"penalty-{penalty}", reward="policy", iterations=1, ensemble_penalty=penalty, score_clip=100.0)
        train(opened(root))
        [logged[penalty]] = rows(root)
    spread = logged[0.0]["objective/scores_member_std"]
    # Half of 0.3, in reward units of 4, on some of the answers.
    assert 0 < spread < 0.6
    assert logged[2.0]["objective/scores_member_std"] == spread
    paid = logged[0.0]["objective/scores"] - logged[2.0]["objective/scores"]
    assert paid == pytest.approx(2.0 * spread, abs=1e-5)


def test_a_single_member_has_no_spread_to_log_or_to_pay_for(make: Make) -> None:
    root = make(iterations=1)
    train(opened(root))
    assert "objective/scores_member_std" not in rows(root)[0]
    with pytest.raises(RunFailure, match="needs a reward model of several members"):
        Learner(opened(make("refused", ensemble_penalty=1.0)))


# ---- demonstrations -----------------------------------------------------------------------------------------------


def test_the_mix_adds_the_gradient_of_the_demonstrations_likelihood(make: Make) -> None:
    """Against plain cross-entropy on each demonstration alone."""
    learner = learner_of(make(temperature=0.7, ptx_weight=0.5, demonstrations=True))
    assert learner.demonstrations is not None
    rows_ = learner.demonstrations.take(5)
    learner.policy.zero_grad()
    figures = ptx_gradient(learner.policy, rows_, 0.5, 2, int(learner.tokenizer.pad_token_id))
    found = [p.grad.clone() for p in learner.policy.parameters() if p.grad is not None]
    learner.policy.zero_grad()
    total = torch.zeros(())
    for row in rows_:
        logits = learner.policy(torch.tensor([row.prompt + row.answer])).logits[0, len(row.prompt) - 1 : -1]
        total = total + nn.functional.cross_entropy(logits, torch.tensor(row.answer), reduction="sum")
    loss = total / sum(len(row.answer) for row in rows_)
    (0.5 * loss).backward()
    expected = [p.grad for p in learner.policy.parameters() if p.grad is not None]
    assert figures["loss/ptx_avg"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_a_heavy_mix_makes_the_demonstrations_likelier(make: Make) -> None:
    losses = {}
    for weight in (0.0, 5.0):
        root = make(
            f"ptx-{weight}",
            iterations=8,
            learning_rate=5e-3,
            schedule="constant",
            ptx_weight=weight,
            demonstrations=True,
        )
        train(opened(root))
        losses[weight] = [row.get("loss/ptx_avg") for row in rows(root)]
    assert losses[0.0] == [None] * 8
    assert losses[5.0][-1] < losses[5.0][0] - 1.0


def test_only_train_demonstrations_that_fit_are_visited_each_before_any_twice(models: Path) -> None:
    from app.core.records import DemonstrationRecord

    tokenizer = load_policy(models / "policy").tokenizer
    records = [DemonstrationRecord.model_validate(row) for row in DEMONSTRATIONS]
    lengths = [
        len(encode_prompt(tokenizer, r.prompt)) + len(encode_completion(tokenizer, r.completion)) for r in records[1:]
    ]
    found = Demonstrations(records, tokenizer, None, seed=1)
    first = found.take(5)
    assert sorted(len(e.prompt) + len(e.answer) for e in first) == sorted(lengths)
    assert all(isinstance(e, Episode) and e.answer[-1] == tokenizer.eos_token_id for e in first)
    fewer = Demonstrations(records, tokenizer, max(lengths) - 1, seed=1)
    assert all(len(e.prompt) + len(e.answer) < max(lengths) for e in fewer.take(9))
    with pytest.raises(RunFailure, match="ptx_weight needs demonstrations"):
        Demonstrations(records, tokenizer, 3, seed=1)


def test_a_mix_without_demonstrations_is_refused_before_the_first_step(make: Make) -> None:
    root = make(ptx_weight=0.1)
    with pytest.raises(RunFailure, match="there is none to learn from") as refusal:
        train(opened(root))
    assert refusal.value.error.kind == "data"
    assert not (root / "metrics.jsonl").exists()


# ---- several answers a prompt -------------------------------------------------------------------------------------


def test_each_prompt_of_a_batch_is_answered_several_times_from_seeds_of_their_own(make: Make) -> None:
    learner = learner_of(make(rollouts_per_prompt=4))
    episodes = learner.sample(1)
    assert len(episodes) == 8
    prompts = [tuple(e.prompt) for e in episodes]
    assert prompts[:4] == [prompts[0]] * 4
    assert prompts[4:] == [prompts[4]] * 4
    assert len({tuple(e.answer) for e in episodes[:4]}) == 4
    # Ten train prompts, two a batch: five batches visit each once.
    more = [tuple(e.prompt) for step in range(2, 6) for e in learner.sample(step)]
    assert {tuple(p.ids) for p in learner.train_prompts} == {*prompts, *more}


def test_an_uneven_number_of_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 64 is not divisible by rollouts_per_prompt 3"):
        PPOConfig(rollouts_per_prompt=3)


# ---- refused before the first step --------------------------------------------------------------------------------


def test_answers_as_long_as_the_context_are_refused(make: Make) -> None:
    with pytest.raises(RunFailure, match="max_tokens 96 leaves no prompt room in the policy's context of 96"):
        Learner(opened(make(max_tokens=96)))


def test_a_run_that_cannot_fit_is_refused_before_anything_is_loaded(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.training.memory.free_memory", lambda device: 1000)
    monkeypatch.setattr(networks, "load_policy", lambda folder: pytest.fail("loaded"))
    with pytest.raises(RunFailure, match="policy with gradient and optimizer") as refusal:
        Learner(opened(make()))
    assert refusal.value.error.kind == "memory"
    assert "lora_rank" in refusal.value.error.mend
