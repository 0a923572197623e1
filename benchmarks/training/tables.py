"""The rows of docs/benchmarks.md from the race's figures."""

from typing import Any

from benchmarks.report import Row
from benchmarks.training.scenes import SCENES, TASKS

Figures = dict[str, Any]
NAMES = {"sft": "SFT", "reward": "reward model", "dpo": "DPO", "ppo": "PPO"}
UNITS = {"sft": "demonstrations", "reward": "judgments", "dpo": "judgments", "ppo": "episodes"}
AT_LEAST = {"sft": 2.0, "reward": 1.3, "dpo": 1.5, "ppo": 4.0}
SHARE = 0.6


def rows_of(scenes: dict[str, Figures]) -> list[Row]:
    """Every scene and task that has figures, in the race's order."""
    rows: list[Row] = []
    for name in SCENES:
        for task in TASKS:
            if found := scenes.get(name, {}).get(task):
                rows += task_rows(name, task, found)
    return rows


def task_rows(scene: str, task: str, found: Figures) -> list[Row]:
    """What one task of one scene came to."""
    ours, trl = found.get("ours"), found.get("trl")
    title = f"**{NAMES[task]}, {scene}**"
    if not ours or not trl:
        said = [f"{side}: {found[f'{side}_missing']}" for side in ("ours", "trl") if f"{side}_missing" in found]
        return [(title, "; ".join(said) or "one side alone was measured", "")]
    a, b = ours["median"], trl["median"]
    ratio = found["ratio"]
    spread = f" ({found['ratio_low']:.1f} to {found['ratio_high']:.1f})" if len(ours["rounds"]) > 1 else ""
    wanted = f"at least {AT_LEAST[task]:g} times" if scene == "starter" else ""
    version = trl["rounds"][0]["trl"]
    speeds = f"{a['samples_per_s']:.1f} against {b['samples_per_s']:.1f} {UNITS[task]}/s"
    rows = [
        (f"{title}, ours against TRL {version}", f"{speeds}: {ratio:.2f} times{spread}", wanted),
        ("- tokens/s", f"{a['tokens_per_s']:,.0f} against {b['tokens_per_s']:,.0f}", ""),
        ("- seconds of a step, ours", phases(a), ""),
        ("- seconds of a step, TRL", phases(b), ""),
        (
            "- peak memory of the process",
            f"{a['peak_mib']:,.0f} against {b['peak_mib']:,.0f} MiB",
            "not above TRL's",
        ),
    ]
    if device := ours["rounds"][0]["notes"].get("device_peak_mib"):
        there = trl["rounds"][0]["notes"]["device_peak_mib"]
        rows.append(("- peak memory of the device", f"{device:,.0f} against {there:,.0f} MiB", "not above TRL's"))
    if shares := found.get("shares"):
        wanted = f"at least {100 * SHARE:.0f} % in each training phase" if scene == "15m" else ""
        said = "; ".join(
            f"{name} {100 * share['ours']:.0f} % (TRL {100 * share['trl']:.0f} %)" for name, share in shares.items()
        )
        rows.append(("- of what the same matrix products reach alone", said, wanted))
    if utilisation := found.get("utilisation"):
        said = "; ".join(f"{n} {100 * u['ours']:.0f} % (TRL {100 * u['trl']:.0f} %)" for n, u in utilisation.items())
        rows.append(("- model FLOPs utilisation, of one large product's speed", said, ""))
    if "quality" in ours["rounds"][0] and "quality" in trl["rounds"][0]:
        rows += quality_rows(task, ours["rounds"], trl["rounds"])
    return rows


def phases(figures: Figures) -> str:
    """Where a step's time goes."""
    parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in sorted(figures["phases_s"].items()) if seconds > 0)
    return f"{figures['step_s']:.3f}: {parts}"


def quality_rows(task: str, ours: list[Figures], trl: list[Figures]) -> list[Row]:
    """Figures of the models, means over the seeds."""

    def means(*names: str) -> list[str]:
        both = []
        for name in names:
            a, b = (sum(r["quality"][name] for r in side) / len(side) for side in (ours, trl))
            both.append(f"{name} {a:.3f} against {b:.3f}")
        return both

    seeds = f"{len(ours)} seed{'s' if len(ours) > 1 else ''}"
    if task == "sft":
        return [(f"- held-out, {seeds}", f"{means('nll')[0]} nats/token", "not above TRL's")]
    if task == "ppo":
        said = means("objective", "score", "kl", "cut", "taste")
        return [
            (f"- on held-out prompts at equal episodes, {seeds}", "; ".join(said[:3]), "score against KL ahead"),
            ("- the rest of it", "; ".join(said[3:]), ""),
        ]
    return [(f"- held-out, {seeds}", "; ".join(means("accuracy", "loss")), "within noise of TRL's, or ahead")]
