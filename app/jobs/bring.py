"""Bringing a model from outside into the checkpoints folder, in a process of its own that knows no secret of ours.

`python -m app.jobs.bring SOURCE FOLDER` prints one JSON object: {"files": {name: sha256}} or {"message", "mend"}.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from app.core.errors import Invalid, PairwrightError
from app.jobs.environment import without_secrets

# What reaching a model hub may need, and nothing else does.
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
FOR_THE_HUB = ("HF_TOKEN", "HF_ENDPOINT", *PROXIES)
LONGEST_S = 6 * 3600


def bring(source: str, folder: Path) -> dict[str, str]:
    """Import a hub id or a folder into `folder`; its files with their hashes. Invalid says why it cannot serve."""
    environment = without_secrets(threads=0)
    del environment["HF_HUB_OFFLINE"]
    environment |= {name: os.environ[name] for name in FOR_THE_HUB if name in os.environ}
    done = subprocess.run(  # noqa: S603 - no shell; the source is one argument after "--"
        [sys.executable, "-m", "app.jobs.bring", "--", source, str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=LONGEST_S,
        check=False,
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise Invalid(
            f"Importing {source} ended with code {done.returncode} and no reason.",
            "A model that does not fit into memory ends like this; the lines above may say more.",
        ) from None
    if "files" not in answer:
        raise Invalid(answer["message"], answer["mend"])
    files: dict[str, str] = answer["files"]
    return files


def main(arguments: list[str]) -> int:
    """The child's side."""
    source, folder = arguments[-2:]
    from app.policy.checkpoint import import_policy

    try:
        answer: dict[str, object] = {"files": import_policy(source, Path(folder))}
    except PairwrightError as error:
        answer = {"message": error.message, "mend": error.mend}
    except OSError as error:
        answer = {"message": f"{source} cannot be read: {error.strerror or type(error).__name__}.", "mend": ""}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0 if "files" in answer else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
