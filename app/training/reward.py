"""A reward model from comparisons: Bradley and Terry's model, ties by Rao and Kupper, rankings by pairs or choices.

Small policies get a probe: every answer is read once by a frozen copy of the policy, then linear scores are fitted to
convergence (app.training.reward_probe). Larger ones get a head, fine-tuned for an epoch (app.training.reward_head).
"""

from app.core.configs import RewardConfig
from app.policy.checkpoint import load_policy
from app.training import reward_head, reward_probe
from app.training.failures import RunFailure
from app.training.memory import SMALLER, WEIGHT, of_learner, require_memory_for, stored_parameters
from app.training.reward_checks import check_judgments
from app.training.reward_data import read_comparisons
from app.training.run import Run

SMALL = 50_000_000
"""Parameters below which `auto` means a probe: the last token of so small a model says little."""


def train(run: Run[RewardConfig]) -> None:
    """Learn a reward model from the run's judgments; final/ then holds it, and report.json says how good it is."""
    config = run.config
    records = run.preferences()
    check_judgments(records, config)
    folder = run.folder(run.spec.policy, "policy")
    parameters = stored_parameters(folder)
    small = parameters < SMALL and not config.lora_rank
    kind = config.kind if config.kind != "auto" else "probe" if small else "head"
    if kind == "probe" and config.lora_rank:
        mend = "Set kind to head, or lora_rank to 0."
        raise RunFailure("config", "A probe leaves the policy as it is: there is nothing for LoRA to adapt.", mend)
    if kind == "probe" and config.pooling == "last":
        message = f"A policy of {parameters / 1e6:.3g} million parameters gets a probe, which reads the whole answer."
        raise RunFailure("config", message, "Leave out pooling=last, or set kind=head.")
    if kind == "probe" and run.world.size > 1:
        mend = "Start the run without a launcher, by python -m app.training, or set kind=head."
        raise RunFailure("config", "A probe is fitted by one process: its features are read once.", mend)
    needs = {"policy": parameters * WEIGHT}
    if kind == "head":  # it learns beside the policy that is read
        needs = of_learner(folder, config, "reward model")
    require_memory_for(run, needs, SMALLER)
    policy = load_policy(folder)
    context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    data = read_comparisons(records, run.demonstrations(), policy.tokenizer, config, run.spec.seed, context)
    readable = [*data.train.records, *data.heldout.records]
    if len(readable) < len(records):
        check_judgments(readable, config)
    loop = reward_probe.train if kind == "probe" else reward_head.train
    loop(run, policy, data)
