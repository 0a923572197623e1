"""`python -m app` and `pairwright`: the command line, and what it says when something is refused."""

import sys

from app.core.errors import PairwrightError
from app.settings import SettingsError


def main() -> None:
    """Run a command. A refusal is one line with what mends it, and exit code 1; never a traceback."""
    from app.cli.main import cli

    try:
        cli()
    except (PairwrightError, SettingsError) as error:
        sys.stderr.write(f"error: {' '.join(part for part in (error.message, error.mend) if part)}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
