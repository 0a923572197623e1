r"""LaTeX to MathML, which browsers draw by themselves: no script, no font, no picture.

What the converter makes is rebuilt element by element: it leaves text unescaped, and knows \href and \style. What it
cannot read is shown as it was written.
"""

import re
from xml.etree.ElementTree import Element

from latex2mathml.converter import Converter
from markupsafe import escape

LONGEST = 2_000
DEEPEST = 24
# A longer formula may be wider than a phone: it can be scrolled, by key as well.
LONG_LINE = 30
SCROLLS = ' tabindex="0" role="group" aria-label="Formula"'

ELEMENTS = frozenset(
    [
        "math",
        "mrow",
        "mi",
        "mn",
        "mo",
        "ms",
        "mtext",
        "mspace",
        "mfrac",
        "msqrt",
        "mroot",
        "mstyle",
        "mpadded",
        "mphantom",
        "mover",
        "munder",
        "munderover",
        "msub",
        "msup",
        "msubsup",
        "mmultiscripts",
        "mprescripts",
        "mtable",
        "mtr",
        "mtd",
        "menclose",
        "merror",
    ]
)
ATTRIBUTES = frozenset(
    [
        "display",
        "displaystyle",
        "scriptlevel",
        "mathvariant",
        "accent",
        "accentunder",
        "stretchy",
        "fence",
        "separator",
        "form",
        "movablelimits",
        "symmetric",
        "largeop",
        "lspace",
        "rspace",
        "minsize",
        "maxsize",
        "linethickness",
        "width",
        "height",
        "depth",
        "columnalign",
        "notation",
    ]
)
SAFE_VALUE = re.compile(r"[\w .%+-]{1,40}")
# Definitions can double what they stand for again and again; addresses and styles are nobody's business here.
REFUSED = re.compile(
    r"\\(?:(?:re|provide)?newcommand|newenvironment|def|gdef|edef|let|href|url|style|class|require|input)\b"
)
ENTITY = re.compile(r"&#x([0-9A-Fa-f]{1,6});")
UNKNOWN = re.compile(r"\\[A-Za-z]+")


class Budget:
    """How much LaTeX one text may hold before the rest is shown as it was written."""

    def __init__(self) -> None:
        self.left = 8_000

    def take(self, size: int) -> bool:
        """Whether there is room for so many characters more."""
        self.left -= size
        return self.left >= 0


def inline(source: str, opener: str, closer: str, left: Budget) -> str:
    """A formula in a line of text; one in display delimiters is set as a block of its own kind."""
    block = opener in ("$$", "\\[")
    made = mathml(source, block, left)
    if made is None:
        return f'<code class="tex">{escape(opener + source + closer)}</code>'
    return f'<span class="formula"{SCROLLS}>{made}</span>' if len(source) > 2 * LONG_LINE else made


def display(source: str, opener: str, closer: str, left: Budget) -> str:
    """A formula on its own line; a long one can be scrolled by key."""
    made = mathml(source, True, left)
    if made is None:
        return f'<div class="code"><pre><code class="tex">{escape(opener + source + closer)}</code></pre></div>'
    return f'<div class="formula"{SCROLLS if len(source) > LONG_LINE else ""}>{made}</div>'


def mathml(source: str, block: bool, left: Budget) -> str | None:
    """MathML, or None where this is not LaTeX that we can read."""
    source = source.strip()
    if len(source) > LONGEST or not left.take(len(source)) or REFUSED.search(source) or depth(source) > DEEPEST:
        return None
    try:
        tree = Converter(display="block" if block else "inline").convert_to_element(source)
        return "".join(written(tree))
    except Exception:
        return None


def depth(source: str) -> int:
    """How deep braces and environments are nested."""
    deepest = now = 0
    for found in re.finditer(r"\\begin|\\left|\\end|\\right|\\.|[{}^_]", source):
        word = found.group()
        if word in ("{", "\\begin", "\\left"):
            now += 1
            deepest = max(deepest, now)
        elif word in ("}", "\\end", "\\right"):
            now -= 1
    return deepest


def written(element: Element, level: int = 0) -> list[str]:
    """An element of ours, whatever stood in the converter's. Raises ValueError where it gave up on a command."""
    if element.tag not in ELEMENTS or level > 80:
        raise ValueError(element.tag)
    kept = "".join(
        f' {name}="{escape(value)}"'
        for name, value in element.attrib.items()
        if name in ATTRIBUTES and SAFE_VALUE.fullmatch(value)
    )
    text = ENTITY.sub(lambda found: chr(int(found.group(1), 16)), element.text or "")
    if UNKNOWN.fullmatch(text):
        raise ValueError(text)
    parts = [f"<{element.tag}{kept}>", str(escape(text))]
    for child in element:
        parts += written(child, level + 1)
    parts.append(f"</{element.tag}>")
    return parts
