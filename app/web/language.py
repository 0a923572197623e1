"""The language of the pages. English is written in the code and the templates; others would come from catalogues.

`make messages` collects what is marked. With a catalogue, `current` would return its `gettext.GNUTranslations` for the
request at hand: everything on a page goes through it already, and a test proves it with a made-up language.
"""

from gettext import NullTranslations

from app.core.errors import PairwrightError

NONE = NullTranslations()


def current() -> NullTranslations:
    """The catalogue of the page that is being rendered."""
    return NONE


def gettext(sentence: str) -> str:
    """A sentence in the page's language."""
    return current().gettext(sentence) if sentence else ""


def ngettext(one: str, many: str, n: int) -> str:
    """The form of a sentence for a number."""
    return current().ngettext(one, many, n)


def told(error: PairwrightError) -> tuple[str, str]:
    """What happened and what mends it, in the page's language."""
    said = tuple(gettext(sentence) for sentence in error.sentences)
    message, mend = (sentence % error.values if error.values else sentence for sentence in said)
    return message, mend
