import importlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from app.core.configs import DPOConfig
from app.policy.likelihood import answer_logprobs
from app.policy.tokenizer_build import build_tokenizer
from app.training.dpo import Learner, gradient
from app.training.dpo_data import Judgments, Row, Side, parts
from app.training.dpo_losses import dpo_loss, ipo_loss, pair_figures, pair_losses
from app.training.reward_losses import ALONE, Pairs, pairs_of_judgments


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# ---- losses by hand -----------------------------------------------------------------------------------------------


def test_dpo_by_hand() -> None:
    # beta m = 1 and -1: log(1 + e^-1) and that plus 1.
    found = dpo_loss(tensor(2.0, -2.0, 0.0), 0.5, tensor(0.0, 0.0, 0.0))
    assert found.tolist() == pytest.approx([0.3132616875182228, 1.3132616875182228, 0.6931471805599453], abs=1e-12)


def test_label_smoothing_by_hand_and_by_torchs_cross_entropy_with_soft_labels() -> None:
    # The two signs differ by 1, so a tenth of the second adds a tenth.
    assert dpo_loss(tensor(2.0), 0.5, tensor(0.1)).item() == pytest.approx(0.4132616875182228, abs=1e-12)
    margin = torch.linspace(-30, 30, 61, dtype=torch.float64)
    for flipped in (0.0, 0.1, 0.49, 0.5):
        soft = torch.full_like(margin, 1 - flipped)
        expected = binary_cross_entropy_with_logits(0.3 * margin, soft, reduction="none")
        torch.testing.assert_close(dpo_loss(margin, 0.3, 1 - soft), expected)


def test_ipo_by_hand() -> None:
    # beta 1/4: the target is 2.
    margin = tensor(1.5, 1.5, 1.5, 2.0)
    found = ipo_loss(margin, 0.25, tensor(0.0, 0.1, 0.5, 0.0))
    assert found.tolist() == pytest.approx([0.25, 0.9 * 0.25 + 0.1 * 12.25, 1.5**2 + 2.0**2, 0.0], abs=1e-12)


def test_ipo_stops_at_its_target_where_dpo_goes_on() -> None:
    margin = tensor(3.0).requires_grad_()
    ipo_loss(margin, 0.25, tensor(0.0)).sum().backward()
    assert margin.grad is not None
    assert margin.grad.item() == pytest.approx(2.0)  # beyond the target of 2 it is pulled back
    margin.grad = None
    dpo_loss(margin, 0.25, tensor(0.0)).sum().backward()
    assert margin.grad.item() == pytest.approx(-0.25 / (1 + math.exp(0.75)))


PAIRS = Pairs(
    first=torch.tensor([0, 2]),
    second=torch.tensor([1, 0]),
    tied=torch.tensor([False, True]),
    weight=torch.tensor([1.0, 0.5]),
    judgment=torch.tensor([0, 1]),
    unit=torch.tensor([0, 1]),
    asked=torch.tensor([0.0, 0.0]),
    choice=torch.tensor([ALONE, ALONE]),
)
RATIOS, LENGTHS = tensor(3.0, -1.0, 0.5), tensor(4.0, 2.0, 5.0)


def test_pairs_take_sums_for_dpo_and_means_by_the_token_for_ipo() -> None:
    # Sums differ by 4 and -2.5; by the token the ratios are .75, -.5 and .1, which differ by 1.25 and -.65.
    dpo = pair_losses(RATIOS, LENGTHS, PAIRS, "dpo", 0.5, 0.0)
    softplus = math.log1p(math.exp(-1.25))
    assert dpo.tolist() == pytest.approx([0.12692801104297263, 0.5 * (softplus + 1.25 + softplus)], abs=1e-9)
    ipo = pair_losses(RATIOS, LENGTHS, PAIRS, "ipo", 0.5, 0.0)
    assert ipo.tolist() == pytest.approx([0.0625, 0.65**2 + 1.0], abs=1e-9)


def test_a_tie_pulls_two_answers_together_whatever_the_smoothing() -> None:
    ratios = RATIOS.clone().requires_grad_()
    for smoothing in (0.0, 0.3):
        ratios.grad = None
        pair_losses(ratios, LENGTHS, PAIRS, "dpo", 0.5, smoothing)[1].backward()
        assert ratios.grad is not None
        assert ratios.grad[0] > 0  # the ratio that is ahead falls
        assert ratios.grad[2] == pytest.approx(-ratios.grad[0])


def test_figures_by_hand_count_pairs_with_a_better_side_only() -> None:
    more = Pairs(*(torch.cat([a, b]) for a, b in zip(PAIRS, PAIRS, strict=True)))
    pairs = more._replace(tied=torch.tensor([False, True, False, False]), weight=torch.tensor([1.0, 0.5, 0.25, 0.75]))
    logprobs = tensor(-10.0, -20.0, -30.0)
    figures = pair_figures(RATIOS, logprobs, pairs, beta=0.1)
    assert figures["weight"] == 2.0
    # The last pair is (2, 0): rewards .05 and .3, ordered wrongly.
    assert figures["rewards/chosen"] == pytest.approx(1.25 * 0.3 + 0.75 * 0.05)
    assert figures["rewards/rejected"] == pytest.approx(1.25 * -0.1 + 0.75 * 0.3)
    assert figures["rewards/margins"] == pytest.approx(1.25 * 0.4 - 0.75 * 0.25)
    assert figures["rewards/accuracies"] == pytest.approx(1.25)
    assert figures["logps/chosen"] == pytest.approx(1.25 * -10 + 0.75 * -30)
    assert figures["logps/rejected"] == pytest.approx(1.25 * -20 + 0.75 * -10)
    level = pair_figures(torch.zeros(3), logprobs, pairs, beta=0.1)
    assert level["rewards/accuracies"] == pytest.approx(1.0)  # equal rewards are half right


# ---- a batch through a model --------------------------------------------------------------------------------------


def tiny(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


EXAMPLES = [
    ([5, 6, 7], [8, 9, 1], [10, 1]),
    ([5], [11, 12, 13, 14, 1], [15, 16, 17, 1]),
    ([20, 21, 22, 23, 24, 25], [1], [26, 27, 28, 29, 30, 1]),
    ([31, 32], [33, 34, 1], [35, 36, 1]),
    ([40, 41, 42], [43, 44, 45, 1], [46, 1]),
]


def judged(tiers: list[list[list[int]]] | None = None) -> Judgments:
    """The examples as judgments of two answers each, the first better; or one judgment of all answers, by tiers."""
    rows = [Row(prompt, answer) for prompt, *both in EXAMPLES for answer in both]
    ranks = tiers or [[[0], [1]]] * len(EXAMPLES)
    pairs = pairs_of_judgments(ranks, None if tiers is None else [list(range(len(rows)))] * len(tiers))
    side = Side(pairs, len(ranks), 0.5)
    return Judgments(rows, side, side, {})


def learner_of(data: Judgments, model: PreTrainedModel, beta: float = 0.1, pad_id: int = 0) -> Learner:
    reference = tiny(1)
    prompts, answers = [row.prompt for row in data.rows], [row.completion for row in data.rows]
    with torch.no_grad():
        logprobs = answer_logprobs(reference, prompts, answers, 0)
    return Learner(model, pad_id, data, data.lengths, logprobs, beta)


def gradients(
    config: DPOConfig, data: Judgments, beta: float = 0.1, pad_id: int = 0
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    model = tiny(2)
    figures = gradient(learner_of(data, model, beta, pad_id), data.train.pairs, config)
    return figures, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


KWISE = [
    [[0, 3], [1], [2, 4, 5], [9], [6, 7, 8]],
    [[9], [0, 1, 2, 3, 4, 5, 6, 7, 8]],
    [[0], [1], [2], [3, 4, 5, 6, 7, 8, 9]],
]


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
@pytest.mark.parametrize("tiers", [None, KWISE])
@pytest.mark.parametrize("size", [1, 2])
def test_the_gradient_is_the_same_whatever_the_micro_batch(loss: str, tiers: Any, size: int) -> None:
    settings: dict[str, Any] = {"loss": loss, "label_smoothing": 0.1, "sft_weight": 0.7, "ties": "half"}
    data = judged(tiers)
    whole, expected = gradients(DPOConfig(micro_batch_size=100, **settings), data)
    cut, found = gradients(DPOConfig(micro_batch_size=size, **settings), data)
    assert cut.pop("tokens") >= whole.pop("tokens")  # an answer that several judgments share may be read again
    assert cut == pytest.approx(whole, abs=1e-5)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=2e-6, rtol=1e-4)


def test_what_stands_in_the_padding_changes_nothing() -> None:
    one, first = gradients(DPOConfig(), judged(), pad_id=0)
    other, second = gradients(DPOConfig(), judged(), pad_id=33)
    assert one == other
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_answers_log_probability_is_that_of_the_plain_forward_pass() -> None:
    model = tiny(2)
    prompts, answers = [p for p, _, _ in EXAMPLES], [c for _, c, _ in EXAMPLES]
    found = answer_logprobs(model, prompts, answers, 0, temperature=0.7)
    for value, prompt, answer in zip(found.tolist(), prompts, answers, strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0] / 0.7
        each = [logits[len(prompt) + t - 1].log_softmax(-1)[token].item() for t, token in enumerate(answer)]
        assert value == pytest.approx(sum(each), abs=1e-5)


def test_a_judgment_of_ten_answers_reads_each_of_them_once() -> None:
    data = judged([[[0], [1], [2], [3], [4], [5], [6], [7], [8], [9]]])
    [part] = parts(data, data.train.pairs, 1)
    assert part.rows == list(range(10))
    assert len(part.pairs.first) == 45
    assert float(part.pairs.weight.sum()) == pytest.approx(1.0)


def test_a_judgment_weighs_one_whether_of_two_answers_or_of_four() -> None:
    """By hand: the mean over judgments of the mean over their pairs."""
    rows = [Row([5, 6], [7 + i, 1]) for i in range(6)]
    pairs = pairs_of_judgments([[[0], [1]], [[0], [1], [2], [3]]], [[0, 1], [2, 3, 4, 5]])
    side = Side(pairs, 2, 0.5)
    model = tiny(2)
    learner = learner_of(Judgments(rows, side, side, {}), model)
    figures = gradient(learner, pairs, DPOConfig())
    with torch.no_grad():
        here = answer_logprobs(model, [r.prompt for r in rows], [r.completion for r in rows], 0)
    ratio = (here - learner.reference).tolist()

    def loss(better: int, worse: int) -> float:
        return math.log1p(math.exp(-0.1 * (ratio[better] - ratio[worse])))

    four = [loss(a, b) for a in range(2, 6) for b in range(a + 1, 6)]
    assert figures["loss"] == pytest.approx((loss(0, 1) + sum(four) / 6) / 2, abs=1e-6)


# ---- the same batch through TRL's trainer -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Builds TRL's DPOTrainer on the tiny policy and reference, offline; its own collator makes the batch."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    library, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
    tokenizer = build_tokenizer(["a word or two"] * 20)

    def build(**settings: Any) -> Any:
        arguments = library.DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=len(EXAMPLES),
            **settings,
        )
        rows = datasets.Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
        return library.DPOTrainer(
            model=tiny(2), ref_model=tiny(1), args=arguments, train_dataset=rows, processing_class=tokenizer
        )

    yield build
    patch.undo()


@pytest.mark.filterwarnings("ignore")  # TRL's and its libraries' own
@pytest.mark.parametrize(
    ("ours", "theirs", "beta"),
    [
        ({"loss": "dpo"}, {"loss_type": ["sigmoid"]}, 0.1),
        ({"loss": "dpo"}, {"loss_type": ["sigmoid"]}, 0.7),
        ({"loss": "ipo"}, {"loss_type": ["ipo"]}, 0.5),
        ({"loss": "dpo", "sft_weight": 0.3}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}, 0.1),
    ],
)
def test_loss_gradient_and_rewards_are_those_of_trls_trainer(
    trl: Any, ours: dict[str, Any], theirs: dict[str, Any], beta: float
) -> None:
    trainer = trl(beta=beta, **theirs)
    collate = type(trainer.data_collator)(pad_token_id=0)
    batch = collate([{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in EXAMPLES])
    trainer.model.train()  # it has no dropout; TRL's metrics go by the mode
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    figures, found = gradients(DPOConfig(micro_batch_size=2, **ours), judged(), beta)
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-5)
    expected = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=2e-6, rtol=1e-4)
    for name in (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "logps/rejected",
    ):
        [logged] = trainer._metrics["train"][name]
        assert figures[name] == pytest.approx(logged, rel=1e-5, abs=1e-6), name
