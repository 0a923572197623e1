"""Chats over HTTP: streamed, cut, cancelled, refused, kept."""

import json
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, func, select

from app.core.vocabulary import ChatState, Mode, Role, Verdict
from app.store import accounts, chats
from app.store.models import (
    Chat,
    Comparison,
    Completion,
    DroppedPairs,
    Guideline,
    JudgmentRevision,
    Membership,
    Project,
    Prompt,
    SignIn,
)
from app.web import streams
from tests.talking import Talker, served
from tests.web.conftest import FETCHING, Cast, House


@pytest.fixture
def talker() -> Iterator[Talker]:
    made = Talker()
    with served(made.app()) as made.address:  # type: ignore[attr-defined]
        yield made


@pytest.fixture
def house(open_house, talker) -> House:
    """An application whose sampler says what it is told to."""
    return open_house(sampler_url=talker.address)


@pytest.fixture
def room(house: House, cast: Cast) -> str:
    """The project is one of chats; its address."""
    with house.store() as s:
        project = s.get_one(Project, cast.project.id)
        project.mode, project.chat_turns = Mode.CHAT, 3
    return f"/p/{cast.project.slug}/chat"


def events(text: str) -> list[tuple[str, dict[str, str]]]:
    return [(name, json.loads(data)) for name, data in re.findall(r"event: (\w+)\ndata: (.*)\n\n", text)]


def said(browser: TestClient, room: str, message: str = "Hello?") -> list[tuple[str, dict[str, str]]]:
    answer = browser.post(f"{room}/turns", data={"message": message}, headers=FETCHING)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    return events(answer.text)


def waiting(html: str) -> dict[str, str]:
    [article] = re.findall(r'<article id="chat"[^>]*>', html)
    return dict(re.findall(r'data-(\w+)="([^"]*)"', article))


def pick(browser: TestClient, room: str, task: dict[str, str], **fields: object):
    form = {"comparison_id": task["comparison"], "order": task["order"], "key": str(uuid.uuid4()), "verdict": "left"}
    return browser.post(f"{room}/picks", data=form | fields, headers=FETCHING)


def rows(house: House, table: type) -> int:
    with house.store() as s:
        return s.scalar(select(func.count()).select_from(table)) or 0


def test_a_turn_is_streamed_by_side_stored_and_picked(house: House, annotator, room, talker):
    heard = said(annotator, room)
    texts = ["".join(e["text"] for name, e in heard if name == "text" and e["side"] == side) for side in (0, 1)]
    assert heard[-1][0] == "done"
    html = heard[-1][1]["html"]
    shown = re.findall(r'data-answer="(?:left|right)">(.*?)</div>', html, re.DOTALL)
    assert [re.sub("<[^>]*>", "", one).strip() for one in shown] == texts
    assert sorted(texts) == ["Answer 1 by a policy.", "Answer 2 by a policy."]
    assert {body["stream"] for body in talker.asked} == {True}
    assert len({body["seed"] for body in talker.asked}) == 2
    with house.store() as s:
        completion = s.scalars(select(Completion).where(Completion.token_ids.is_not(None))).first()
        assert (completion.token_ids, completion.chat_template_hash) == ([3, 1], "ab" * 32)
        assert completion.latency_ms > 0
    task = waiting(html)
    again = waiting(annotator.get(room).text)
    assert (again["state"], again["comparison"], again["turn"]) == ("choose", task["comparison"], "turn 1 of 3")
    answer = pick(annotator, room, task, verdict="right", first_key_ms=900, active_ms=1200)
    assert answer.status_code == 200
    assert waiting(answer.text)["state"] == "compose"
    said(annotator, room, "And then?")
    assert talker.asked[-1]["messages"] == [
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": texts[1]},
        {"role": "user", "content": "And then?"},
    ]
    with house.store() as s:
        revision = s.scalars(select(JudgmentRevision)).one()
        assert (revision.verdict, revision.counted, revision.active_ms) == (Verdict.RIGHT, True, 1200)


def test_a_message_is_shown_as_text_and_never_as_markup(annotator, room):
    html = said(annotator, room, "<script>alert(1)</script> & so")[-1][1]["html"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so" in html
    assert "<script" not in html + annotator.get(room).text.replace('<script type="module"', "")


def test_nothing_on_the_page_says_which_policy_is_which(house: House, cast: Cast, annotator, room, make_with, talker):
    with house.store() as s:
        rival = make_with(s).policy(cast.project)
        s.get_one(Project, cast.project.id).chat_policy_id = rival.id
    talker.say = lambda model, n: ["red" if model == rival.folder_name else "blue"]
    sides = set()
    for i in range(12):
        heard = said(annotator, room, f"Question {i}")
        sides.add(next(e["side"] for name, e in heard if name == "text" and e["text"] == "red"))
        page = annotator.get(room).text
        for policy in (cast.policy, rival):
            assert str(policy.id) not in page
            assert policy.folder_name not in page
            assert f">{policy.name}<" not in page
        annotator.post(f"{room}/end", data={"chat_id": waiting(page)["chat"]})
    assert sides == {0, 1}


def test_the_last_turn_finishes_the_chat_and_the_page_begins_anew(house: House, annotator, room):
    for i in range(3):
        html = said(annotator, room, f"Question {i}")[-1][1]["html"]
        answer = pick(annotator, room, waiting(html))
    assert "turn 3 of 3. The chat is finished" in re.sub(r"\s+", " ", answer.text)
    assert "Begin a chat" in annotator.get(room).text
    with house.store() as s:
        assert s.scalars(select(Chat.state)).all() == [ChatState.FINISHED]


def test_both_bad_gives_the_words_back_and_undo_the_choice(annotator, room):
    task = waiting(said(annotator, room)[-1][1]["html"])
    answer = pick(annotator, room, task, verdict="both_bad")
    assert waiting(answer.text)["again"] == "Hello?"
    assert waiting(annotator.get(room).text)["again"] == "Hello?"
    undone = annotator.post(f"{room}/undo", headers=FETCHING)
    assert waiting(undone.text)["comparison"] == task["comparison"]
    skipped = annotator.post(f"{room}/skip", data={"comparison_id": task["comparison"]}, headers=FETCHING)
    assert "Skipped: neither answer goes on" in skipped.text


def test_answers_alike_are_sampled_once_more(house: House, annotator, room, talker):
    talker.say = lambda model, n: ["the same"] if n < 3 else [f"number {n}"]
    names = [name for name, _ in said(annotator, room)]
    assert names.count("again") == 1
    assert names[-1] == "done"
    with house.store() as s:
        assert s.scalars(select(DroppedPairs.count)).all() == [1]


def test_answers_alike_twice_store_nothing_and_say_so(house: House, annotator, room, talker):
    talker.say = lambda model, n: [" "]
    before = rows(house, Comparison), rows(house, Prompt)
    name, last = said(annotator, room)[-1]
    assert name == "refused"
    assert "An answer was empty twice" in last["html"]
    assert (rows(house, Comparison), rows(house, Prompt), rows(house, Chat)) == (*before, 0)
    talker.say = lambda model, n: [f"number {n}"]
    assert said(annotator, room)[-1][0] == "done"


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((503, "busy"), "The policy does not answer right now."),
        ((422, "The conversation has 600 tokens; the model reads at most 511."), "600 tokens"),
        ((404, "none"), "does not have this policy"),
    ],
)
def test_what_the_sampler_refuses_is_said_and_nothing_is_stored(house: House, annotator, room, talker, refusal, words):
    talker.refuse = refusal
    before = rows(house, Prompt)
    name, last = said(annotator, room)[-1]
    assert (name, words in last["html"]) == ("refused", True)
    assert (rows(house, Chat), rows(house, Prompt)) == (0, before)


def test_what_cannot_be_asked_is_refused_before_anything_is_streamed(house: House, cast: Cast, annotator, room, talker):
    for message in ("", "x" * (chats.LONGEST_MESSAGE + 1), "a\0b", "  \n"):
        assert annotator.post(f"{room}/turns", data={"message": message}, headers=FETCHING).status_code == 422
    foreign = {**FETCHING, "Sec-Fetch-Site": "cross-site"}
    assert annotator.post(f"{room}/turns", data={"message": "Hello?"}, headers=foreign).status_code == 403
    said(annotator, room)
    assert annotator.post(f"{room}/turns", data={"message": "More?"}, headers=FETCHING).status_code == 409
    assert len(talker.asked) == 2


def test_in_another_mode_there_is_no_chat(house: House, cast: Cast, annotator, room):
    with house.store() as s:
        s.get_one(Project, cast.project.id).mode = Mode.PAIR
    assert annotator.get(room).status_code == 404
    assert annotator.post(f"{room}/turns", data={"message": "Hello?"}, headers=FETCHING).status_code == 404


def test_whoever_may_not_judge_is_told_why(house: House, cast: Cast, annotator, room):
    with house.store() as s:
        member = s.get_one(Membership, (cast.project.id, cast.people["annotator"].id))
        member.paused_at = func.now()
    assert "An admin has paused your part" in annotator.get(room).text
    assert annotator.post(f"{room}/turns", data={"message": "Hello?"}, headers=FETCHING).status_code == 409


def test_unread_guidelines_come_first(house: House, cast: Cast, annotator, room):
    with house.store() as s:
        s.add(Guideline(project_id=cast.project.id, version=2, body="Be kind."))
        s.get_one(Project, cast.project.id).guideline_version = 2
    answer = annotator.get(room)
    assert (answer.status_code, answer.headers["location"]) == (303, room.replace("chat", "guidelines"))
    assert annotator.post(f"{room}/turns", data={"message": "Hello?"}, headers=FETCHING).status_code == 409


# ---- while it streams: over a real connection ----------------------------------------------------------------------


@contextmanager
def streaming(house: House, cast: Cast, room: str, talker: Talker) -> Iterator[tuple[httpx.Client, str]]:
    """A slow sampler, the application on a real port, and the annotator's connection to it."""
    talker.say, talker.pause = (lambda model, n: [f"word{n} "] * 400), 0.05
    cookies = dict(house.browser(cast.people["annotator"]).cookies)
    with (
        served(house.app) as address,
        httpx.Client(base_url=address, cookies=cookies, headers=FETCHING, trust_env=False, timeout=30) as client,
    ):
        yield client, f"{room}/turns"


def until(ask, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not ask():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_closing_the_tab_stops_the_generation_and_stores_nothing(house: House, cast: Cast, room, talker):
    before = rows(house, Prompt)
    with streaming(house, cast, room, talker) as (client, turns):
        with client.stream("POST", turns, data={"message": "Hello?"}) as answer:
            pieces = answer.iter_text()
            assert "word" in next(pieces)
            assert house.app.state.engine.pool.checkedout() == 0
            assert client.post(turns, data={"message": "Me too"}).status_code == 409
        until(lambda: talker.left == 2)
        until(lambda: not house.app.state.lanes._taken)
        assert talker.whole == 0
        talker.say = lambda model, n: [f"number {n}"]
        assert client.post(turns, data={"message": "Again"}).status_code == 200
    assert rows(house, Prompt) == before + 1


@pytest.mark.parametrize("how", ["demoted", "deactivated", "signed out"])
def test_whoever_may_no_longer_is_cut_within_five_seconds(house: House, cast: Cast, room, talker, how):
    person = cast.people["annotator"]
    with streaming(house, cast, room, talker) as (client, turns):
        with client.stream("POST", turns, data={"message": "Hello?"}) as answer:
            lines = answer.iter_lines()
            next(lines)
            with house.store() as s:
                member = s.get_one(Membership, (cast.project.id, person.id))
                if how == "demoted":
                    member.role = Role.RESEARCHER
                elif how == "deactivated":
                    accounts.deactivate(s, cast.project.id, person.id, cast.people["admin"].id)
                else:
                    s.execute(delete(SignIn))
            cut = time.monotonic()
            rest = list(lines)
        assert time.monotonic() - cut < 5
        assert "event: refused" in rest
        until(lambda: talker.left == 2)
    assert rows(house, Chat) == 0


def test_when_all_lanes_are_taken_the_next_is_told_to_try_again(house: House, cast: Cast, room, annotator):
    leave = [house.app.state.lanes.enter(uuid.uuid4()) for _ in range(streams.MOST)]
    answer = annotator.post(f"{room}/turns", data={"message": "Hello?"}, headers=FETCHING)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "Too many answers are being written" in answer.text
    leave[0]()
    assert said(annotator, room)[-1][0] == "done"
