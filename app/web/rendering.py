"""Texts that people and models wrote, as they are shown: escaped, or rendered from Markdown and then sanitised."""

from markupsafe import Markup, escape


def rich(text: str) -> Markup:
    """A text as safe HTML."""
    return Markup(escape(text))  # noqa: S704 - escaped in the same line
