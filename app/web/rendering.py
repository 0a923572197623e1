"""Texts that people and models wrote, as they are shown: Markdown, code and formulas made into HTML, then sanitised.

A text is never trusted. Markup in it stays text, images stay words, ids never come from it, and whatever the renderer
made passes a strict list of elements before it leaves. Texts that would take too long are shown as they were written.
"""

import hashlib
import re
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

import nh3
from markupsafe import Markup, escape

from app.web import markdown

# Above these a text is shown as it was written: nobody's page waits for it.
LONGEST = 40_000
MOST_MARKS = 4_000
MOST_COLUMNS = 64
CACHED_BYTES = 16 << 20

# A text without any of these means the same with Markdown and without.
MARKUP = re.compile(r"[\\`*_\[\]|]")
ENTITY = re.compile(r"&#?\w+;")
LINES = re.compile(r"\n[ \t]{0,3}(?:#{1,6}\s|>|[-+]\s|\d{1,9}[.)]\s|-[- \t]*-[- \t]*-)")
MARKS = re.compile(r"[\\`*_\[\]|~$<>#&\n]")
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# Beside control characters: what reorders, joins or takes no room, and what only looks like a space.
ODD = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u2000-\u200b\u200e\u200f\u2028-\u202f"
    r"\u205f-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
RUNS = re.compile(rf"({ODD.pattern})\1*")
MOST_NAMED = 2_000
TONGUES = (
    ("ja", re.compile(r"[\u3040-\u30ff\u31f0-\u31ff]")),
    ("ko", re.compile(r"[\u1100-\u11ff\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")),
    ("fa", re.compile(r"[\u067e\u0686\u0698\u06a9\u06af\u06cc]")),
    ("ar", re.compile(r"[\u0600-\u06ff\u0750-\u077f]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
)

CLEANER = nh3.Cleaner(
    tags=set(markdown.ELEMENTS),
    clean_content_tags={"script", "style"},
    attributes={name: set(kept) for name, kept in markdown.ATTRIBUTES.items()},
    allowed_classes={name: set(kept) for name, kept in markdown.CLASSES.items()},
    url_schemes={"http", "https"},
    link_rel="noopener noreferrer nofollow",
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A text as it is shown, how it was written where that looks different, its language where the script tells."""

    html: Markup
    raw: Markup | None
    tongue: str | None


class Kept:
    """The texts shown last, up to so many bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self.kept: OrderedDict[tuple[bytes, int], Shown] = OrderedDict()
        self.lock = Lock()

    def get(self, key: tuple[bytes, int]) -> Shown | None:
        """What was made of this text before, if it is still there."""
        with self.lock:
            found = self.kept.get(key)
            if found is not None:
                self.kept.move_to_end(key)
            return found

    def put(self, key: tuple[bytes, int], shown: Shown) -> None:
        """Keep this one; those used longest ago make room."""
        with self.lock:
            if key in self.kept:
                return
            self.kept[key] = shown
            self.size += weight(shown)
            while self.size > self.most and self.kept:
                self.size -= weight(self.kept.popitem(last=False)[1])


def weight(shown: Shown) -> int:
    """About how much memory a kept text takes."""
    return 2 * (len(shown.html) + len(shown.raw or "")) + 400


CACHE = Kept(CACHED_BYTES)


def rich(text: str) -> Markup:
    """A text as safe HTML."""
    return shown(text).html


def shown(text: str, heading: int = 3) -> Shown:
    """A text as it is shown; its own headings begin at this level, so that the page's outline stays whole."""
    text = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    if not marked(text):
        return Shown(plain(text), raw(text) if ODD.search(text) else None, tongue(text))
    key = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest(), heading)
    found = CACHE.get(key)
    if found is None:
        found = Shown(rendered(text, heading), raw(text), tongue(text))
        CACHE.put(key, found)
    return found


def marked(text: str) -> bool:
    """Whether Markdown could find anything in this text."""
    return (
        MARKUP.search(text) is not None
        or "~~" in text
        or "://" in text
        or ("&" in text and ENTITY.search(text) is not None)
        or text.count("$") > 1
        or LINES.search(f"\n{text}\n") is not None
    )


def rendered(text: str, heading: int) -> Markup:
    """Markdown made into HTML and sanitised; as it was written where it is too long, too dense or too deep."""
    if len(text) > LONGEST or len(MARKS.findall(text)) > MOST_MARKS:
        return plain(text)
    if any(line.count("|") > MOST_COLUMNS for line in text.splitlines()):
        return plain(text)
    html = markdown.html(visible(text), heading)
    if html is None:
        return plain(text)
    return Markup(CLEANER.clean(html))  # noqa: S704 - sanitised in the same line


def plain(text: str) -> Markup:
    """Paragraphs, nothing more. Spaces and further blank lines stay: the stylesheet keeps them."""
    paragraphs = str(escape(visible(text))).strip("\n").split("\n\n")
    html = "\n".join(f"<p>{one.rstrip()}</p>" for one in paragraphs if one.strip())
    return Markup(html)  # noqa: S704 - escaped above


def raw(text: str) -> Markup:
    """Every character as it was written; those that cannot be seen are named, as long as there are not too many."""
    named = RUNS.sub(name_of, str(escape(text)), MOST_NAMED)
    return Markup(named)  # noqa: S704 - escaped above


def name_of(run: re.Match[str]) -> str:
    """The number of a character that cannot be seen, and how often it stands there."""
    times = f" \u00d7 {len(run.group())}" if len(run.group()) > 1 else ""
    return f'<span class="odd">U+{ord(run.group()[0]):04X}{times}</span>'


def visible(text: str) -> str:
    """Control characters as the small pictures that Unicode has for them."""
    return UNSEEN.sub(lambda found: picture(found.group()), text)


def picture(character: str) -> str:
    """ESC is shown as its picture; what has none, as the sign for an unknown character."""
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def tongue(text: str) -> str | None:
    """The language, where the script tells it: for fonts, line breaks and the voice of a screen reader."""
    if text.isascii():
        return None
    letters = sum(map(str.isalpha, text))
    for name, script in TONGUES:
        # Japanese is told by its kana, Persian by its own letters: few of them are enough.
        share = 0.08 if name in ("ja", "fa") else 0.3
        if len(script.findall(text)) > share * letters:
            return name
    return None
