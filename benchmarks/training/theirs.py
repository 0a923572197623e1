"""`python -m benchmarks.training.theirs JOB.json`: one run of TRL's trainers, on the rows of ours in the same order.

Optimizer, learning rates and schedule are ours too; what is TRL's own to choose stands in the job's `knobs`, and
benchmarks/training/sweep.py says how they were chosen.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from app.policy.reward_model import RewardSettings
from app.training.optim import lr_factor
from benchmarks.training import data
from benchmarks.training.scenes import THREADS
from benchmarks.training.watch import Watch

Job = dict[str, Any]
KNOBS: dict[str, Any] = {
    "attention": "sdpa",  # or eager
    "fused": False,  # AdamW in one kernel
    "rows": None,  # rows in a forward pass; None: the whole batch
    "order": "same",  # as our trainer visits the rows; or random, or group_by_length
    "compile": False,
    "dtype": "float32",  # of the weights; on a GPU autocast computes in bf16
    "precompute": False,  # DPO: the reference's log-probabilities before training
    "rollout": 64,  # PPO: rows in a forward pass without gradients
    "cache": None,  # PPO: generate's kind of key-value cache
}


class Steps(TrainerCallback):
    """Tells the watch when the loop begins and when a step has ended."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._watch.ready()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._watch.step()


def main() -> None:
    """Train as the job says and leave final/ and notes.json."""
    job: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    job["knobs"] = KNOBS | job["knobs"]
    torch.set_num_threads(THREADS)
    torch.manual_seed(job["seed"])
    watch = Watch()
    watch.usual()
    tokenizer = data.tokenizer_of(Path(job["scene"]))
    trainer = {"sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo}[job["task"]](job, tokenizer, watch)
    trainer.train()
    out = Path(job["out"])
    watch.figures["tokens_by_trl"] = getattr(trainer, "_total_train_tokens", None)
    if job["task"] == "ppo":
        rows = [row for row in trainer.state.log_history if "objective/kl" in row]
        watch.figures["trajectory"] = [[row["objective/kl"], row["objective/scores"]] for row in rows]
    trainer.save_model(str(out / "final"))
    tokenizer.save_pretrained(out / "final")
    watch.write(out / "notes.json")


def sft(job: Job, tokenizer: PreTrainedTokenizerBase, watch: Watch) -> Any:
    """Loss on the answers alone."""
    from trl import SFTConfig, SFTTrainer

    settings = job["settings"]
    batches = data.sft_batches(Path(job["scene"]), job["seed"], settings["steps"], settings["batch"])
    rows = [
        {"input_ids": e.prompt + e.completion, "completion_mask": [0] * len(e.prompt) + [1] * len(e.completion)}
        for batch in batches
        for e in batch
    ]
    model = causal(job)
    return SFTTrainer(
        model=model,
        args=SFTConfig(max_length=None, completion_only_loss=True, **usual(job)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Steps(watch)],
        optimizers=optimizer(job, [model]),
    )


def reward(job: Job, tokenizer: PreTrainedTokenizerBase, watch: Watch) -> Any:
    """A head on the last token, from the weights that our own run begins with."""
    from trl import RewardConfig, RewardTrainer

    settings = job["settings"]
    batches = data.pair_batches(Path(job["scene"]), job["seed"], settings["steps"], settings["batch"])
    rows = [{"chosen_ids": p.prompt + p.better, "rejected_ids": p.prompt + p.worse} for batch in batches for p in batch]
    model = classifier(job, Path(job["scene"]) / settings["start"])
    width = model.score.weight.shape[1]
    generator = torch.Generator().manual_seed(job["seed"])
    model.score.weight.data.normal_(0, (width + 1) ** -0.5, generator=generator)
    return RewardTrainer(
        model=model,
        args=RewardConfig(max_length=None, **usual(job)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Steps(watch)],
        optimizers=optimizer(job, [model]),
    )


def dpo(job: Job, tokenizer: PreTrainedTokenizerBase, watch: Watch) -> Any:
    """The sigmoid loss. Log-probabilities of the reference that are taken beforehand are part of the race's time."""
    from trl import DPOConfig, DPOTrainer

    settings = job["settings"]
    batches = data.pair_batches(Path(job["scene"]), job["seed"], settings["steps"], settings["batch"])
    rows = [
        {
            "prompt": [dict(message) for message in p.messages],
            "chosen": [{"role": "assistant", "content": p.better_text}],
            "rejected": [{"role": "assistant", "content": p.worse_text}],
        }
        for batch in batches
        for p in batch
    ]
    model = causal(job)
    beforehand = job["knobs"]["precompute"]
    original = DPOTrainer._precompute_ref_logps

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        answer = original(*args, **kwargs)
        watch.figures["beforehand_s"] = time.perf_counter() - started
        return answer

    DPOTrainer._precompute_ref_logps = timed
    trainer = DPOTrainer(
        model=model,
        ref_model=None if beforehand else causal(job).eval().requires_grad_(False),
        args=DPOConfig(max_length=None, beta=settings["beta"], precompute_ref_log_probs=beforehand, **usual(job)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Steps(watch)],
        optimizers=optimizer(job, [model]),
    )
    want, got = batches[0][0], trainer.train_dataset[0]
    if (want.prompt, want.better, want.worse) != (got["prompt_ids"], got["chosen_ids"], got["rejected_ids"]):
        raise SystemExit("TRL reads other tokens than ours: the race would not be one")
    return trainer


def ppo(job: Job, tokenizer: PreTrainedTokenizerBase, watch: Watch) -> Any:
    """TRL's last PPO: policy, reference, reward and value model are four networks, as ours.

    One minibatch is one pass: only then it makes as many updates as ours, since its optimizer steps once in
    `gradient_accumulation_steps` passes, whatever `num_mini_batches` says.
    """
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    settings, scene, knobs = job["settings"], Path(job["scene"]), job["knobs"]
    tokenizer.padding_side = "left"
    policy, reference = causal(job), causal(job).eval().requires_grad_(False)
    judge, value = (in_reward_units(classifier(job, scene / "reward"), scene / "reward") for _ in range(2))
    policy.generation_config.cache_implementation = knobs["cache"]
    batches = data.prompt_batches(scene, job["seed"], settings["steps"], settings["batch"])
    rows = [{"input_ids": prompt.ids} for batch in batches for prompt in batch]
    more = usual(job)
    for unused in ("max_steps", "train_sampling_strategy"):
        del more[unused]
    more |= {"per_device_train_batch_size": settings["batch"], "gradient_accumulation_steps": 1, "logging_steps": 1}
    trainer = PPOTrainer(
        args=PPOConfig(
            total_episodes=settings["steps"] * settings["batch"],
            num_mini_batches=settings["minibatches"],
            num_ppo_epochs=settings["epochs"],
            local_rollout_forward_batch_size=knobs["rollout"],
            num_sample_generations=0,
            response_length=settings["max_tokens"],
            stop_token="eos",
            temperature=1.0,
            missing_eos_penalty=1.0,
            kl_coef=settings["beta"],
            gamma=1.0,
            lam=0.95,
            cliprange=0.2,
            cliprange_value=0.2,
            vf_coef=1.0,
            **more,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=judge.eval().requires_grad_(False),
        value_model=value,
        train_dataset=Dataset.from_list(rows),
        callbacks=[Steps(watch)],
        optimizers=optimizer(job, [policy, value]),
    )
    # Its own loader shuffles; this one gives the prompts in our order.
    trainer.dataloader = trainer.accelerator.prepare(
        DataLoader(trainer.train_dataset, batch_size=settings["batch"], collate_fn=DataCollatorWithPadding(tokenizer))
    )
    generate = ppo_trainer.batch_generation
    sampled = watch.figures["sampled"] = []

    def counted(model: Any, queries: torch.Tensor, *rest: Any) -> Any:
        result = generate(model, queries, *rest)
        watch.mark("sample")
        answers = result[0][:, queries.shape[1] :]
        ends = (answers == tokenizer.eos_token_id).int()
        sampled.append(int(((ends.cumsum(1) - ends) == 0).sum()))
        return result

    ppo_trainer.batch_generation = counted
    watch.after(ppo_trainer, "masked_whiten", lambda _: watch.mark("score"))
    watch.after(trainer, "log", lambda _: watch.mark("update"))
    return trainer


def causal(job: Job) -> PreTrainedModel:
    """The language model that the task begins with."""
    return AutoModelForCausalLM.from_pretrained(
        Path(job["scene"]) / job["settings"]["start"],
        dtype=getattr(torch, job["knobs"]["dtype"]),
        attn_implementation=job["knobs"]["attention"],
        local_files_only=True,
    )


def classifier(job: Job, folder: Path) -> Any:
    """A sequence classifier with one label on the weights in a folder."""
    return AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=1,
        dtype=getattr(torch, job["knobs"]["dtype"]),
        attn_implementation=job["knobs"]["attention"],
        local_files_only=True,
    )


def in_reward_units(model: Any, folder: Path) -> Any:
    """The same classifier with the reward's zero and unit in its head: ours keeps them beside it, in reward.json."""
    unit = RewardSettings.model_validate_json((folder / "reward.json").read_text(encoding="utf-8"))
    head = nn.Linear(model.score.weight.shape[1], 1)
    head.weight.data.copy_(model.score.weight.data * unit.scale)
    head.bias.data.fill_(-unit.offset * unit.scale)
    model.score = head
    return model


def optimizer(job: Job, models: list[Any]) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Our AdamW and our schedule; a second model learns at the value function's rate."""
    settings = job["settings"]
    rates = [settings["learning_rate"], settings.get("value_learning_rate", 0.0)]
    scale = job["knobs"].get("rate", 1.0)
    groups = [
        {"params": list(model.parameters()), "lr": scale * rate} for model, rate in zip(models, rates, strict=False)
    ]
    fused = job["knobs"]["fused"] or None
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=fused)
    steps, warmup, floor = settings["steps"], settings["warmup"], settings.get("floor", 0.0)
    return adamw, LambdaLR(adamw, lambda update: lr_factor(min(update, steps - 1), steps, warmup, "linear", floor))


def usual(job: Job) -> dict[str, Any]:
    """What every trainer is told."""
    settings, knobs = job["settings"], job["knobs"]
    rows = knobs["rows"] or settings["batch"]
    return {
        "output_dir": str(Path(job["out"]) / "trainer"),
        "use_cpu": job["device"] == "cpu",
        "bf16": job["device"] != "cpu",
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": settings["batch"] // rows,
        "max_steps": settings["steps"],
        "gradient_checkpointing": False,
        "torch_compile": knobs["compile"],
        "train_sampling_strategy": "sequential" if knobs["order"] == "same" else knobs["order"],
        "max_grad_norm": 1.0,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": job["seed"],
    }


if __name__ == "__main__":
    main()
