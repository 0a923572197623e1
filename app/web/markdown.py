"""Markdown to HTML: the parts of CommonMark that models write, tables, formulas, and nothing that would hide a word.

Link definitions, HTML and indented code stay text: whoever judges must see all that was written.
"""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.common.utils import isWhiteSpace
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token
from markupsafe import escape

from app.web import formulas, highlighting

DEEPEST = 40
FORMULA_REACH = 2_000
FORMULA_LINES = 60
DOLLARS = 6
# Tables with more columns than this do not fit beside each other, and scroll.
NARROW_TABLE = 6

ELEMENTS = frozenset(
    [
        "p",
        "strong",
        "em",
        "s",
        "code",
        "pre",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "ul",
        "ol",
        "li",
        "blockquote",
        "hr",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "a",
        "span",
        "div",
    ]
) | frozenset(formulas.ELEMENTS)
ATTRIBUTES: dict[str, frozenset[str]] = {
    "a": frozenset({"href", "target"}),
    "ol": frozenset({"start", "dir"}),
    "ul": frozenset({"dir"}),
    "blockquote": frozenset({"dir"}),
    "table": frozenset({"dir"}),
    "pre": frozenset({"dir"}),
    "div": frozenset({"tabindex", "role", "aria-label"}),
    "span": frozenset({"tabindex", "role", "aria-label"}),
    **{name: frozenset(formulas.ATTRIBUTES) for name in formulas.ELEMENTS},
}
CLASSES: dict[str, frozenset[str]] = {
    "span": frozenset({*highlighting.CLASSES, "image", "host", "lang", "formula"}),
    "code": frozenset({"tex"}),
    "div": frozenset({"code", "wide", "formula"}),
    "ul": frozenset({"tight"}),
    "ol": frozenset({"tight"}),
    "th": frozenset({"center", "right"}),
    "td": frozenset({"center", "right"}),
}
SIMPLE = {"strong", "em", "s", "thead", "tbody", "tr", "li"}
CJK = re.compile(
    r"[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]"
)
DELIMITERS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"))
PIPE = re.compile(r"(?<!\\)\|")
HOST = re.compile(r"[\w.-]+|[0-9a-f:.]+")
OPENING = "([{<（「『【《〈〔“‘"
CLOSING = ")]}>）」』】》〉〕”’。、，．：；！？"
ADDRESS = re.compile(r"://[^\s<>\"'`*|\\^{}\[\]\u3000-\u303f\uff00-\uffef]+", re.IGNORECASE)
WORDS = re.compile(r"(?<![\\{A-Za-z])[A-Za-z]{2,}[,;]?\s+[A-Za-z]{2,}")
ENVIRONMENT = re.compile(
    r"\\begin\{(equation|align|aligned|gather|gathered|multline|split|cases|[pbvBV]?matrix)(\*?)\}"
)


def parser() -> MarkdownIt:
    """The rules that are on."""
    made = MarkdownIt("commonmark", {"html": False, "maxNesting": DEEPEST}).enable(["table", "strikethrough"])
    made.disable(["code", "reference", "lheading", "html_block", "html_inline"])
    made.block.ruler.at("table", whole_table, {"alt": ["paragraph", "reference"]})
    made.inline.ruler.at("emphasis", emphasis)
    made.inline.ruler.at("newline", newline)
    made.inline.ruler.before("escape", "formula", formula)
    made.inline.ruler.before("newline", "address", address)
    above = ["paragraph", "reference", "blockquote", "list"]
    made.block.ruler.before("fence", "formula_block", formula_block, {"alt": above})
    made.validateLink = web_address  # type: ignore[method-assign]
    return made


def html(text: str, heading: int) -> str | None:
    """The text as HTML that is yet to be sanitised; None where some of it would not be seen."""
    try:
        tokens = PARSER.parse(text)
    except RecursionError:
        return None
    if any(max(token.level, inner_level(token)) >= DEEPEST - 2 for token in tokens):
        return None
    return "".join(blocks(tokens, heading))


def inner_level(token: Token) -> int:
    """How deep the inline elements of a block go."""
    return token.level + max((child.level for child in token.children or ()), default=0)


# What is added to the rules of CommonMark.


def whole_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A table, unless a row has more cells than the head: what is beyond would be dropped, so it all stays text."""
    before = len(state.tokens)
    if not table(state, start, end, silent):
        return False
    width = sum(token.type == "th_open" for token in state.tokens[before:])
    for line in range(start + 2, state.line if not silent else start):
        row = state.getLines(line, line + 1, 0, False).strip()
        cells = len(PIPE.findall(row)) + 1 - row.startswith("|") - (len(row) > 1 and row.endswith("|"))
        if cells > width:
            del state.tokens[before:]
            state.line = start
            return False
    return True


def emphasis(state: StateInline, silent: bool) -> bool:
    """As CommonMark has it, but beside Chinese, Japanese and Korean letters no space is asked for around `**`."""
    marker = state.src[state.pos]
    if silent or marker not in "_*":
        return False
    scanned = state.scanDelims(state.pos, marker == "*")
    can_open, can_close = scanned.can_open, scanned.can_close
    before = state.src[state.pos - 1] if state.pos else " "
    after = state.src[state.pos + scanned.length] if state.pos + scanned.length < state.posMax else " "
    if marker == "*" and (CJK.match(before) or CJK.match(after)):
        can_open = not isWhiteSpace(ord(after)) and after not in CLOSING
        can_close = not isWhiteSpace(ord(before)) and before not in OPENING
    for _ in range(scanned.length):
        state.push("text", "", 0).content = marker
        here = len(state.tokens) - 1
        state.delimiters.append(Delimiter(ord(marker), scanned.length, here, -1, can_open, can_close))
    state.pos += scanned.length
    return True


def newline(state: StateInline, silent: bool) -> bool:
    """A line ends where it was ended, and the next keeps the spaces that it begins with."""
    if state.src[state.pos] != "\n":
        return False
    if not silent:
        state.pending = state.pending.rstrip(" ")
        state.push("softbreak", "br", 0)
    state.pos += 1
    return True


def address(state: StateInline, silent: bool) -> bool:
    """A bare address becomes a link to what it says; the full stop behind it stays outside."""
    if not state.src.startswith("://", state.pos) or state.linkLevel:
        return False
    scheme = next((s for s in ("https", "http") if state.pending.lower().endswith(s)), None)
    found = ADDRESS.match(state.src, state.pos, state.posMax)
    if scheme is None or found is None:
        return False
    rest = found.group().rstrip(".,;:!?~_")
    while rest.endswith(")") and rest.count(")") > rest.count("("):
        rest = rest[:-1].rstrip(".,;:!?")
    written = state.pending[-len(scheme) :] + rest
    url = state.md.normalizeLink(written)
    if not web_address(url):
        return False
    if not silent:
        state.pending = state.pending[: -len(scheme)]
        opening = state.push("link_open", "a", 1)
        opening.attrs = {"href": url}
        opening.info = "auto"
        state.push("text", "", 0).content = written
        state.push("link_close", "a", -1).info = "auto"
    state.pos += len(rest)
    return True


def formula(state: StateInline, silent: bool) -> bool:
    r"""A formula in a line: \( \), \[ \], $ $ or $$ $$. A dollar before a price is none."""
    source, pos = state.src, state.pos
    found = [pair for pair in DELIMITERS if source.startswith(pair[0], pos)]
    if not found:
        return False
    opener, closer = found[0]
    start = pos + len(opener)
    reach = min(state.posMax, start + FORMULA_REACH)
    end = source.find(closer, start, reach)
    if opener == "$":
        end = closing_dollar(state, start, reach)
    if end <= start or not source[start:end].strip():
        return False
    if not silent:
        token = state.push("formula", "", 0)
        token.content = source[start:end]
        token.markup = opener
        token.info = closer
    state.pos = end + len(closer)
    return True


def closing_dollar(state: StateInline, start: int, reach: int) -> int:
    """Where the formula that a single dollar opens ends; -1 where it opens none."""
    source = state.src
    before = source[start - 2] if start > 1 else " "
    if before.isalnum() or source[start : start + 1].isspace():
        return -1
    end = source.find("$", start, reach)
    for _ in range(DOLLARS):
        if end == -1:
            break
        after = source[end + 1 : end + 2]
        if source[end - 1] not in "\\ \n\t" and not after.isalnum() and after != "$":
            return -1 if WORDS.search(source, start, end) else end
        end = source.find("$", end + 1, reach)
    return -1


def formula_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""A formula on lines of its own, between $$ and $$, \[ and \], or in an environment."""
    pos = state.bMarks[start] + state.tShift[start]
    first = state.src[pos : state.eMarks[start]].rstrip()
    environment = ENVIRONMENT.match(first)
    if environment:
        opener, closer = "", f"\\end{{{environment.group(1)}{environment.group(2)}}}"
    elif first.startswith("$$"):
        opener, closer = "$$", "$$"
    elif first.startswith("\\["):
        opener, closer = "\\[", "\\]"
    else:
        return False
    inside = first[len(opener) :]
    last = start
    if closer in inside:
        if not inside.endswith(closer) or inside.index(closer) != len(inside) - len(closer):
            return False
    else:
        for last in range(start + 1, min(end, start + FORMULA_LINES)):
            outside = state.sCount[last] < state.blkIndent and not state.isEmpty(last)
            if outside:
                return False
            if state.src[state.bMarks[last] : state.eMarks[last]].rstrip().endswith(closer):
                break
        else:
            return False
    if silent:
        return True
    whole = state.getLines(start, last + 1, state.blkIndent, False).strip()
    token = state.push("formula_block", "", 0)
    token.content = whole if environment else whole[len(opener) : -len(closer)]
    token.markup, token.info = opener, "" if environment else closer
    token.map = [start, last + 1]
    state.line = last + 1
    return True


# From tokens to HTML.


def blocks(tokens: list[Token], heading: int) -> Iterator[str]:
    """HTML of the blocks, piece by piece."""
    outline: list[int] = []
    columns = table_widths(tokens)
    tex_left = formulas.Budget()
    code_left = highlighting.Budget()
    for i, token in enumerate(tokens):
        kind = token.type
        if kind == "inline":
            yield from inline(token.children or [], tex_left)
        elif token.tag in SIMPLE:
            yield f"</{token.tag}>\n" if token.nesting < 0 else f"<{token.tag}>"
        elif token.tag == "p":
            yield "</p>\n" if token.nesting < 0 else "<p>"
        elif kind == "heading_open":
            yield f"<h{level(outline, int(token.tag[1]), heading)}>"
        elif kind == "heading_close":
            yield f"</h{min(6, heading + len(outline) - 1)}>\n"
        elif token.tag in ("ul", "ol"):
            yield f"</{token.tag}>\n" if token.nesting < 0 else list_opening(tokens, i)
        elif token.tag == "blockquote":
            yield "</blockquote>\n" if token.nesting < 0 else '<blockquote dir="auto">'
        elif token.tag in ("th", "td"):
            yield f"</{token.tag}>" if token.nesting < 0 else cell_opening(token)
        elif kind == "table_open":
            wide = columns[i] > NARROW_TABLE
            yield '<div class="wide" tabindex="0" role="group" aria-label="Wide table">' if wide else ""
            yield '<table dir="auto">'
        elif kind == "table_close":
            yield "</table></div>\n" if columns[i] > NARROW_TABLE else "</table>\n"
        elif kind == "hr":
            yield "<hr>\n"
        elif kind == "fence":
            yield fence(token, code_left)
        elif kind == "formula_block":
            yield formulas.display(token.content, token.markup, token.info, tex_left) + "\n"
        else:
            yield f"<p>{escape(token.content)}</p>\n"


def level(outline: list[int], written: int, top: int) -> int:
    """A heading's place in the page's outline: below the one above it by one at most, whatever was written."""
    while outline and outline[-1] >= written:
        outline.pop()
    outline.append(written)
    return min(6, top + len(outline) - 1)


def table_widths(tokens: list[Token]) -> dict[int, int]:
    """How many columns each table has, by where it opens and closes."""
    widths: dict[int, int] = {}
    opened, width = 0, 0
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            opened, width = i, 0
        elif token.type == "th_open":
            width += 1
        elif token.type == "table_close":
            widths[opened] = widths[i] = width
    return widths


def list_opening(tokens: list[Token], i: int) -> str:
    """A list, tight where its items are single lines."""
    token = tokens[i]
    inside = (tokens[j] for j in range(i + 1, len(tokens)))
    first = next((one for one in inside if one.type == "paragraph_open" and one.level == token.level + 2), None)
    tight = ' class="tight"' if first is None or first.hidden else ""
    start = token.attrs.get("start")
    begin = f' start="{int(start)}"' if start is not None else ""
    return f'<{token.tag}{tight}{begin} dir="auto">'


def cell_opening(token: Token) -> str:
    """A cell; how it is aligned is a class, for a style would break the page's policy."""
    style = str(token.attrs.get("style", ""))
    side = next((f' class="{name}"' for name in ("center", "right") if name in style), "")
    return f"<{token.tag}{side}>"


def fence(token: Token, left: highlighting.Budget) -> str:
    """A block of code under the name of its language."""
    name = token.info.strip()
    label = f'<span class="lang">{escape(name)}</span>' if name else ""
    code = highlighting.highlighted(token.content.rstrip("\n"), name.split(" ")[0], left)
    return f'<div class="code">{label}<pre dir="auto"><code>{code}</code></pre></div>\n'


def inline(tokens: list[Token], tex_left: formulas.Budget) -> Iterator[str]:
    """HTML of what stands in a line."""
    links: list[Token] = []
    for token in tokens:
        kind = token.type
        if kind in ("text", "text_special"):
            yield escape(token.content)
        elif kind in ("softbreak", "hardbreak"):
            yield "\n"
        elif kind == "code_inline":
            yield f"<code>{escape(token.content)}</code>"
        elif kind == "formula":
            yield formulas.inline(token.content, token.markup, token.info, tex_left)
        elif token.tag in SIMPLE:
            yield f"</{token.tag}>" if token.nesting < 0 else f"<{token.tag}>"
        elif kind == "link_open":
            links.append(token)
            yield f'<a href="{escape(str(token.attrs["href"]))}" target="_blank">'
        elif kind == "link_close":
            yield link_end(links.pop())
        elif kind == "image":
            yield image(token)
        else:
            yield escape(token.content)


def link_end(token: Token) -> str:
    """The end of a link; where its words are not its address, its host and title stand behind them."""
    if token.info == "auto":
        return "</a>"
    title = token.attrs.get("title")
    said = f"{host(str(token.attrs['href']))}{', ' + str(title) if title else ''}"
    return f'</a> <span class="host">({escape(said)})</span>'


def image(token: Token) -> str:
    """An image in words: nothing is fetched for it."""
    words = "".join(child.content for child in token.children or ())
    title = token.attrs.get("title")
    parts = (words, str(title or ""), str(token.attrs.get("src", "")))
    return f'<span class="image">[Image: {escape(", ".join(part for part in parts if part))}]</span>'


def web_address(url: str) -> bool:
    """Whether this leads to a host on the web, and to nothing else."""
    return url.lower().startswith(("http://", "https://")) and HOST.fullmatch(host(url)) is not None


def host(url: str) -> str:
    """Whom a link leads to, as the network spells it."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


PARSER = parser()
