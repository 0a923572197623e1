"""Code in colours: a few classes of ours, whose colours stand in the stylesheet for light and dark."""

import time
from functools import cache
from itertools import groupby

from markupsafe import escape
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Generic, Keyword, Name, Number, Operator, String, Token, _TokenType

LONGEST = 6_000
# No lexer that is listed takes this long for so little; a text that finds a slow path in one is left black.
SECONDS = 0.15
CLASSES = {"k", "s", "n", "c", "f", "d"}
KINDS: tuple[tuple[_TokenType, str], ...] = (
    (Comment, "c"),
    (Keyword, "k"),
    (Operator.Word, "k"),
    (Name.Tag, "k"),
    (String, "s"),
    (Number, "n"),
    (Name.Function, "f"),
    (Name.Class, "f"),
    (Name.Decorator, "f"),
    (Name.Attribute, "f"),
    (Generic.Inserted, "s"),
    (Generic.Deleted, "d"),
    (Generic.Heading, "k"),
    (Generic.Subheading, "k"),
)
LANGUAGES = {
    name: name
    for name in [
        "bash",
        "c",
        "c++",
        "clojure",
        "console",
        "cpp",
        "cs",
        "csharp",
        "css",
        "dart",
        "diff",
        "dockerfile",
        "elixir",
        "erlang",
        "go",
        "graphql",
        "haskell",
        "html",
        "ini",
        "java",
        "javascript",
        "js",
        "json",
        "jsx",
        "julia",
        "kotlin",
        "latex",
        "lua",
        "makefile",
        "matlab",
        "nginx",
        "objective-c",
        "ocaml",
        "perl",
        "php",
        "powershell",
        "python",
        "py",
        "python3",
        "r",
        "rb",
        "rs",
        "ruby",
        "rust",
        "scala",
        "scheme",
        "scss",
        "sh",
        "shell",
        "sql",
        "swift",
        "tex",
        "toml",
        "ts",
        "tsx",
        "typescript",
        "xml",
        "yaml",
        "yml",
        "zig",
    ]
} | {"node": "js", "golang": "go", "c#": "csharp", "f#": "fsharp", "zsh": "bash", "postgres": "sql", "jsonl": "json"}


class Budget:
    """How much code of one text is coloured."""

    def __init__(self) -> None:
        self.left = LONGEST

    def take(self, size: int) -> bool:
        """Whether there is room for so many characters more."""
        self.left -= size
        return self.left >= 0


def highlighted(code: str, language: str, left: Budget) -> str:
    """Code as HTML, in colours where the language is known and it is not too long."""
    name = LANGUAGES.get(language.lower())
    if name is None or not left.take(len(code)):
        return str(escape(code))
    lexer: Lexer = get_lexer_by_name(name, stripnl=False, ensurenl=False)
    until = time.thread_time() + SECONDS
    pieces: list[tuple[str, str]] = []
    for kind, value in lexer.get_tokens(code):
        pieces.append((class_of(kind), value))
        if time.thread_time() > until:
            return str(escape(code))
    parts = []
    for name, run in groupby(pieces, lambda piece: piece[0]):
        text = escape("".join(value for _, value in run))
        parts.append(f'<span class="{name}">{text}</span>' if name else str(text))
    return "".join(parts)


@cache
def class_of(kind: _TokenType) -> str:
    """Our class for a token; most have none."""
    return next((name for parent, name in KINDS if kind in parent), "") if kind is not Token.Text else ""
