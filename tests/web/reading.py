"""Reading pages back in tests."""

import re


def tasks_of(html: str) -> list[dict[str, str]]:
    """The comparisons of a page or fragment, in order, as {"comparison", "order"}."""
    found = re.findall(r'data-comparison="([^"]+)" data-order="([^"]+)"', html)
    return [{"comparison": comparison, "order": order} for comparison, order in found]


def words_of(html: str) -> str:
    """What a reader sees, in one line."""
    return " ".join(re.sub(r"(?s)<(script|style|head)\b.*?</\1>|<[^>]+>", " ", html).split())
