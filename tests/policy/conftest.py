from pathlib import Path

import pytest
import torch

from app.core.folders import write_folder
from app.policy.checkpoint import save_policy
from app.policy.starter import new_starter


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The models here are so small that threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A folder with two untrained tiny policies, `one` and `two`, that differ in their weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("one", "two")):
        policy = new_starter("tiny", seed)
        write_folder(folder / name, lambda partial, policy=policy: save_policy(partial, *policy))
    return folder
