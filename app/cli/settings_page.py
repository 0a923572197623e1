"""docs/settings.md, made from the settings themselves."""

import types
from typing import Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from app.settings import Settings

OTHERS = {
    "PAIRWRIGHT_SECRETS_DIR": "A folder of files named `pairwright_database_url` and so on, a setting each, as "
    "containers mount secrets. Environment variables win over files.",
    "PAIRWRIGHT_PASSWORD": "The admin's password for `pairwright simulate`, so that it need not be typed.",
    "PAIRWRIGHT_TEST_DATA": "A folder of public data sets that some tests read; those are skipped without it.",
    "PAIRWRIGHT_CHROMIUM": "The Chromium that browser tests and screenshots use; otherwise the one on PATH.",
}


def settings_page() -> str:
    """Markdown: a table of every setting with its type, default and meaning."""
    rows = [
        f"| `PAIRWRIGHT_{name.upper()}` | {_kind(field)} | {_default(field)} | {field.description or ''} |"
        for name, field in Settings.model_fields.items()
    ]
    others = [f"| `{name}` | {meaning} |" for name, meaning in OTHERS.items()]
    return "\n".join(
        [
            "# Settings",
            "",
            "<!-- Made by `make settings` from app/settings.py; a test compares the two. -->",
            "",
            "Every setting is an environment variable. None is needed to begin: `make run` works with the defaults.",
            "",
            "| variable | type | default | meaning |",
            "|---|---|---|---|",
            *rows,
            "",
            "Read by other parts:",
            "",
            "| variable | meaning |",
            "|---|---|",
            *others,
            "",
        ]
    )


def _kind(field: FieldInfo) -> str:
    kind = field.annotation
    options = [option for option in get_args(kind) if option is not types.NoneType]
    if get_origin(kind) is Literal:
        return ", ".join(str(option) for option in options)
    if options:
        (kind,) = options
    if kind is SecretStr:
        return "secret"
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Path": "folder"}
    name = getattr(kind, "__name__", str(kind))
    return names.get(name, name)


def _default(field: FieldInfo) -> str:
    if field.default is None:
        return "unset"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
