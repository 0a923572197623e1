"""The words in which two answers differ: marked alike on both sides, nothing else in the page changed."""

import pytest
from playwright.sync_api import Page

from app.web.rendering import rich
from tests.browser.conftest import Watch

MARK = """async ([left, right, wrapping]) => {
    const { toggleDifferences } = await import("/static/judge/differences.js");
    const sides = [left, right].map((html) => {
        const side = document.createElement("div");
        side.className = "text";
        side.append(...new DOMParser().parseFromString(html, "text/html").body.childNodes);
        document.body.append(side);
        return side;
    });
    const before = sides.map((side) => side.innerHTML);
    if (wrapping) globalThis.Highlight = undefined;
    const began = performance.now();
    const count = toggleDifferences(...sides, true);
    const took = performance.now() - began;
    const ranges = [...(CSS.highlights.get("differs") ?? [])].map((range) =>
        [sides.findIndex((side) => side.contains(range.startContainer)), range.toString()]);
    const marks = sides.flatMap((side, at) => [...side.querySelectorAll("mark")].map((mark) => [at, mark.textContent]));
    const untouched = wrapping || sides.every((side, at) => side.innerHTML === before[at]);
    toggleDifferences(...sides, false);
    const back = sides.every((side, at) => side.innerHTML === before[at]) && !CSS.highlights.has("differs");
    sides.forEach((side) => side.remove());
    return { count, took, marked: wrapping ? marks : ranges, untouched, back };
}"""


@pytest.fixture
def page(watch: Watch) -> Page:
    """A page of ours, under its policy."""
    opened = watch.page(watch.context())
    opened.goto(f"{watch.site}/sign-in")
    return opened


def marked(page: Page, left: str, right: str, wrapping: bool = False) -> tuple[int, list[str], list[str]]:
    """The number of words that differ, and what is marked on either side."""
    found = page.evaluate(MARK, [str(rich(left)), str(rich(right)), wrapping])
    assert found["untouched"]
    assert found["back"]
    sides: tuple[list[str], list[str]] = ([], [])
    for side, text in found["marked"]:
        sides[side].append(text)
    return found["count"], *sides


@pytest.mark.parametrize("wrapping", [False, True], ids=["highlights", "marks"])
def test_what_differs_is_marked_and_what_is_common_is_not(page: Page, wrapping: bool):
    left = "The kettle leaves our warehouse on **Tuesday**, and you keep it."
    right = "The kettle leaves our warehouse on Friday or later, and you keep it."
    assert marked(page, left, right, wrapping) == (4, ["Tuesday"], ["Friday or later"])
    assert marked(page, "Same words here.", "Same *words* here.", wrapping) == (0, [], [])


def test_neither_side_is_preferred(page: Page):
    one, other = "Please send the red lamp back to us today.", "Please keep the red lamp and throw us a party."
    count, left, right = marked(page, one, other)
    assert marked(page, other, one) == (count, right, left)


def test_words_are_found_without_spaces_and_from_right_to_left(page: Page):
    assert marked(page, "商品は火曜日に発送します。", "商品は金曜日に発送します。")[1:] == (["火曜日"], ["金曜日"])
    assert marked(page, "نرد خلال يوم واحد", "نرد خلال أسبوع واحد")[1:] == (["يوم"], ["أسبوع"])


def test_a_lone_word_between_changes_belongs_to_them(page: Page):
    count, left, right = marked(page, "We begin alpha beta of gamma delta end.", "We begin one two of three four end.")
    assert (count, left, right) == (10, ["alpha beta of gamma delta"], ["one two of three four"])


def test_very_long_answers_are_marked_in_time(page: Page):
    words = [f"w{i}" for i in range(6000)]
    left, right = words[:], words[:]
    left[10], right[5990] = "different", "other"
    found = page.evaluate(MARK, [str(rich(" ".join(left))), str(rich(" ".join(right))), False])
    assert [text for _, text in found["marked"]] == ["different", "w5990", "w10", "other"]
    assert found["took"] < 2000
    hopeless = page.evaluate(MARK, [str(rich("a b " * 6000)), str(rich("b c " * 6000)), False])
    assert hopeless["took"] < 4000
