"""The templates and the tokens: lint, one root a fragment, contrast, vendored files as recorded."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from jinja2 import StrictUndefined

from app.core.vocabulary import RunKind
from app.web.curves import CURVES
from app.web.pages import ROOT, STATIC, TEMPLATES

NAMES = [name for name in TEMPLATES.list_templates() if name.endswith(".html")]
VOID = {"input", "link", "meta", "br", "img", "hr", "path"}


def test_every_template_compiles_and_undefined_is_an_error():
    assert TEMPLATES.undefined is StrictUndefined
    assert TEMPLATES.autoescape is True
    for name in NAMES:
        TEMPLATES.get_template(name)


def test_the_templates_are_clean():
    done = subprocess.run(
        [sys.executable, "-m", "djlint", "templates", "--lint", "--quiet"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


class Roots(HTMLParser):
    """Collects the outermost elements."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.roots: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.depth == 0:
            self.roots.append(dict(attrs))
        self.depth += tag not in VOID

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag not in VOID


@pytest.mark.parametrize("name", [name for name in NAMES if name.rsplit("/", 1)[-1].startswith("_")])
def test_a_fragment_has_one_root_with_an_id(name):
    source = (ROOT / "templates" / name).read_text()
    parser = Roots()
    parser.feed(re.sub(r"(?s)\{%.*?%\}|\{\{.*?\}\}", "x", source))
    assert parser.depth == 0
    assert [("id" in root) for root in parser.roots] == [True]


def test_no_template_holds_script_style_or_what_htmx_would_evaluate():
    forbidden = re.compile(
        r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|hx-on|js:|javascript:|hx-trigger=\"[^\"]*\[|\|\s*safe"
    )
    found = {name: forbidden.findall((ROOT / "templates" / name).read_text()) for name in NAMES}
    assert {name: hits for name, hits in found.items() if hits} == {}


def tokens() -> dict[str, tuple[str, str]]:
    css = (STATIC / "app.css").read_text()
    return {
        name: (light, dark) for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", css)
    }


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_measured_as_the_standard_does():
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize(
    "ink", ["ink", "muted", "accent", "warning", "error", "keyword", "string", "number", "function"]
)
@pytest.mark.parametrize("paper", ["paper", "raised", "wash", "inset"])
def test_every_ink_can_be_read_on_every_paper(scheme, ink, paper):
    found = tokens()
    assert contrast(found[ink][scheme], found[paper][scheme]) >= 4.5


@pytest.mark.parametrize("scheme", [0, 1])
def test_the_primary_buttons_words_can_be_read(scheme):
    found = tokens()
    assert contrast(found["on-accent"][scheme], found["accent"][scheme]) >= 4.5


def test_colours_are_named_in_one_place_only():
    outside = {}
    for path in STATIC.rglob("*.css"):
        if "vendor" not in path.parts:
            css = path.read_text().split("\n}\n", 1)[1] if path.name == "app.css" else path.read_text()
            outside[path.name] = re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[;\s,)])", css)
    assert {name: hits for name, hits in outside.items() if hits} == {}


def test_vendored_files_are_the_ones_that_were_recorded():
    done = subprocess.run([sys.executable, str(STATIC / "vendor" / "fetch"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((STATIC / "vendor" / "VENDORED.json").read_text())
    assert {name: package["version"] for name, package in record.items()} == {"htmx.org": "4.0.1", "uplot": "1.6.32"}


def test_every_curve_says_what_good_looks_like():
    assert set(CURVES) == set(RunKind)
    for curves in CURVES.values():
        for curve in curves:
            assert curve.good.endswith(".")
            assert len(curve.good.split()) >= 6
            if "line" in curve.good.split():
                assert curve.limit is not None
