"""Ready for gettext: what a reader sees is marked, and a made-up language reaches all of a page."""

import re
import runpy
from gettext import NullTranslations
from html.parser import HTMLParser

import pytest

from app.core.errors import Invalid
from app.core.vocabulary import Role
from app.store import accounts, passwords
from app.web import language
from app.web.pages import ROOT, TEMPLATES
from tests.web.conftest import FETCHING, Cast, House

NAMES = [name for name in TEMPLATES.list_templates() if name.endswith(".html")]
# Written before this test. The list may only become shorter.
FOLDERS = ["chat", "data", "guidelines", "history", "judge", "loop", "policies", "project", "quality", "runs", "write"]
NOT_YET = {name for name in NAMES if name.partition("/")[0] in FOLDERS}
SEEN = ("aria-label", "placeholder", "title", "alt", "hx-confirm", "data-copied", "data-press")


class Words(HTMLParser):
    """Collects what a reader sees: texts, and the attributes that are read out or shown."""

    def __init__(self) -> None:
        super().__init__()
        self.silent = 0
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.silent += tag in ("script", "style")
        self.found += [value for name, value in attrs if name in SEEN and value]

    def handle_endtag(self, tag: str) -> None:
        self.silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.found.append(data)


def unmarked(source: str) -> list[str]:
    """The texts of a template that no translator would see."""
    # Names of classes are no words, though they stand in a block of their own.
    bare = re.sub(r"\{% block \w+_class %\}.*?\{% endblock %\}", "", source)
    bare = re.sub(r"(?s)\{#.*?#\}|\{% trans.*?\{% endtrans %\}|\{%.*?%\}|\{\{.*?\}\}", "", bare)
    parser = Words()
    parser.feed(bare)
    return [text.strip() for text in parser.found if re.search(r"[^\W\d_]", text.replace("Pairwright", ""))]


def test_an_unmarked_word_would_be_found():
    assert unmarked("<p>{% trans %}Marked{% endtrans %} forgotten</p>") == ["forgotten"]
    assert unmarked('<input placeholder="forgotten" title="{{ _("Marked") }}">') == ["forgotten"]
    assert unmarked("<p>{{ value }} · 7</p>{# a remark #}") == []


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOT_YET))
def test_what_a_reader_sees_is_marked(name):
    assert unmarked((ROOT / "templates" / name).read_text()) == []


def test_the_list_of_what_is_not_marked_yet_names_nothing_that_is():
    sources = {name: (ROOT / "templates" / name).read_text() for name in NOT_YET}
    assert [name for name, source in sources.items() if "{% trans" in source and not unmarked(source)] == []


ACCENTS = str.maketrans("aceinorsuyACEINORSUY", "áćéíńóŕśúýÁĆÉÍŃÓŔŚÚÝ")


class MadeUp(NullTranslations):
    """Accents on every letter, brackets around every sentence; tags and what is filled in stay as they are."""

    def gettext(self, message: str) -> str:
        parts = re.split(r"(<[^>]*>|%\(\w+\)s|%%)", message)
        return "⟦" + "".join(part if i % 2 else part.translate(ACCENTS) for i, part in enumerate(parts)) + "⟧"

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return self.gettext(msgid1 if n == 1 else msgid2)


def left_in_english(html: str, data: tuple[str, ...]) -> list[str]:
    """The words of a page that did not go through the catalogue and are nobody's data."""
    parser = Words()
    parser.feed(html)
    text = "\n".join(parser.found)
    for one in sorted(data, key=len, reverse=True):
        text = text.replace(one, "")
    while "⟦" in text:  # the innermost first, for a sentence is filled in with sentences
        shorter = re.sub(r"⟦[^⟦⟧]*⟧", "", text)
        if shorter == text:
            break
        text = shorter
    return re.findall(r"[^\W\d_]{2,}", text.replace("Pairwright", ""))


@pytest.fixture
def made_up(monkeypatch) -> None:
    """Pages in the made-up language."""
    monkeypatch.setattr(language, "NONE", MadeUp())


def test_nothing_on_the_pages_of_people_is_left_in_english(made_up, open_house, cast: Cast, house: House):
    with house.store() as s:
        owner = accounts.create_owner(s, accounts.issue_setup_token(s) or "", "olga", "a quiet green page")
        person = cast.people["annotator"]
        invitation = accounts.invite(s, cast.project.id, Role.ADMIN, owner.id, note="for-rosa")
        lost = passwords.make_reset(s, person.id, None)
    with_provider = open_house(oidc_issuer="http://127.0.0.1:9", oidc_client_id="pairwright", oidc_name="Example")
    base = f"/p/{cast.project.slug}/people"
    people = [one.username or "" for one in (*cast.people.values(), owner)]
    pages = {}
    for one in (house, with_provider):
        mine, guest = one.browser(owner), one.browser()
        for path in ("/sign-in", "/sign-in?said=password", f"/join/{invitation}", f"/reset/{lost}", "/reset/none"):
            pages[one is house, "guest", path] = guest.get(path).text
        for path in ("/account", base, f"{base}/{person.id}", f"{base}/{owner.id}", f"/join/{invitation}", "/nothing"):
            pages[one is house, "owner", path] = mine.get(path).text
    with house.store() as s:
        data = [one.pseudonym for one in accounts.members(s, cast.project.id)]
    known = (*people, *data, cast.project.name, "for-rosa", "Example")
    assert {path: rest for path, html in pages.items() if (rest := left_in_english(html, known))} == {}
    assert "⟦Śígń íń⟧" in pages[True, "guest", "/sign-in"]


def test_a_refusal_is_translated_before_it_is_filled_in(made_up, house: House, cast: Cast):
    assert language.told(Invalid("At least %(n)s.", "Add some.", n=10)) == (
        "⟦Át ĺéáśt 10.⟧".replace("ĺ", "l"),
        "⟦Ádd śómé.⟧",
    )
    answer = house.browser().post("/reset/none", data={"password": "short"}, headers=FETCHING)
    assert "⟦Thé páśśwóŕd" in answer.text
    assert "10" in answer.text


def test_without_a_catalogue_english_stays_and_marks_cost_nothing():
    assert language.told(Invalid("100 % of it.", "")) == ("100 % of it.", "")
    assert Invalid("%(n)s of it.", n=3).message == "3 of it."
    assert language.ngettext("%(n)s day", "%(n)s days", 1) == "%(n)s day"


def test_translations_are_markup_and_what_is_filled_in_is_escaped():
    template = TEMPLATES.from_string("{% trans name=who %}For <strong>{{ name }}</strong>{% endtrans %}")
    assert template.render(who="<script>") == "For <strong>&lt;script&gt;</strong>"


def test_everything_marked_is_collected_for_translators():
    found = {str(message.id) for message in runpy.run_path(str(ROOT / ".ci" / "messages"))["catalogue"]()}
    for sentence in (
        "Continue with %(name)s",
        "The password needs at least %(least)s characters.",
        "A short sentence works well.",
        "This name and password do not belong together.",
        "People",
        "Press Ctrl C",
        "('%(n)s day', '%(n)s days')",
        "This page is not for annotators.",
    ):
        assert sentence in found
    assert len(found) > 250
