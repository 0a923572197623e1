"""People compare answers, a reward model learns from them, PPO trains the policy that writes the next answers."""
