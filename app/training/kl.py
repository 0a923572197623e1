"""What a nat of KL costs: beta, fixed or steered towards a target."""

from collections.abc import Mapping
from typing import Any

from app.core.configs import PPOConfig

MAX_ERROR = 0.2


class Beta:
    """The coefficient of the KL penalty, in reward units per nat.

    Adaptive control (Ziegler et al. 2019, section 2.2): e = clip(KL / target - 1, -0.2, 0.2), then
    beta <- beta (1 + gain e), with KL and target in nats per sequence. The paper's gain is 0.1 over many thousand
    updates; runs here are short.
    """

    def __init__(self, config: PPOConfig) -> None:
        self.value = config.beta
        self._config = config

    def update(self, sequence_kl: float) -> None:
        """Move beta after a batch whose mean KL from the reference was `sequence_kl` nats per sequence."""
        if self._config.kl_control == "adaptive":
            error = max(-MAX_ERROR, min(MAX_ERROR, sequence_kl / self._config.kl_target - 1))
            self.value *= 1 + self._config.kl_gain * error

    def state_dict(self) -> dict[str, float]:
        """The coefficient."""
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.value = state["value"]
