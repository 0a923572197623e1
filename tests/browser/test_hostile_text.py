"""Stored script: whatever a model or a person writes is shown as text, and nothing of it runs or is fetched."""

import uuid

import pytest
from playwright.sync_api import expect

from app.core.vocabulary import Role, RunKind
from app.store import accounts, judgments, runs
from app.store.claims import claim
from app.store.judgments import Submission
from app.store.models import Prompt
from app.web.security import signed
from tests.browser import server, stage
from tests.browser.conftest import settle, shown

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<img src='https://evil.example/pixel.png'>",
    "<svg onload=alert(1)><a href='javascript:alert(1)'>x</a></svg>",
    "\"><iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "</div></article><form action=https://evil.example><input name=password>",
    "<div hx-get='https://evil.example' hx-trigger='load' hx-on:load='alert(1)'>x</div>",
    "<template data-task data-comparison='x'></template><style>*{display:none}</style>",
    "{{ config }} {% raw %} ${alert(1)} <%= 7*7 %> [[7*7]]",
    "&lt;script&gt;alert(1)&lt;/script&gt; &amp;amp; \u202egnp.exe",
    "![x](https://evil.example/x.png) [y](javascript:alert(1)) <!-- --><![CDATA[ ]]>",
    "<link rel=stylesheet href=https://evil.example/x.css><meta http-equiv=refresh content=0;url=https://evil.example>",
]


@pytest.fixture
def dialogs(watch):
    """Dialogs that any page of the test has opened."""
    seen: list[str] = []
    original = watch.page

    def page(context):
        opened = original(context)
        opened.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
        return opened

    watch.page = page
    return seen


def test_answers_and_prompts_are_text_while_they_are_judged(desk_of, dialogs):
    desk = desk_of(0)
    texts = [(f"{payload} asked", f"{payload} left", f"{payload} right") for payload in PAYLOADS]
    with desk.sessions() as s:
        stage.fill(s, desk.project, desk.policy, 0, texts)
        s.commit()
    page = desk.open()
    seen = set()
    for _ in PAYLOADS:
        task = page.locator("[data-task]:not([hidden])")
        seen.add(task.locator("[data-turn]").inner_text().removesuffix(" asked"))
        sides = sorted(task.locator(f'[data-answer="{side}"]').inner_text().split()[-1] for side in ("left", "right"))
        assert sides == ["left", "right"]
        before = shown(page)
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("id => !document.querySelector(`[data-comparison='${id}']`)", arg=before)
        settle(page)
    assert seen == {payload.strip() for payload in PAYLOADS}
    assert page.locator("[data-answer] *").count() == 0
    assert dialogs == []
    assert desk.total() == len(PAYLOADS)


def test_guidelines_names_and_samples_are_text_on_every_other_page(desk_of, dialogs):
    bad = PAYLOADS[0] + PAYLOADS[1]
    desk = desk_of(30, guidelines=" ".join(PAYLOADS))
    desk.project.name = bad
    with desk.sessions() as s:
        s.merge(desk.project)
        admin = stage.person(s, f"{bad} {uuid.uuid4()}", desk.project, Role.ADMIN)
        for _ in range(30):
            [task] = claim(s, desk.project.id, admin.id, 1)
            submission = Submission(task.comparison_id, uuid.uuid4(), judgments.Verdict.LEFT, task.order)
            judgments.submit(s, desk.project.id, admin.id, submission)
        reward = stage.register(s, desk.project, stage.CheckpointKind.REWARD_MODEL, None, desk.policy, {})
        run = runs.enqueue(s, desk.project.id, RunKind.PPO, admin.id, reward_model_id=reward.id)
        taken = runs.claim_run(s, "test")
        assert taken is not None
        prompt = s.query(Prompt).filter_by(project_id=desk.project.id).first()
        rows = [{"step": 1, "prompt_id": str(prompt.id), "completion": " ".join(PAYLOADS), "reward": 0.1}]
        runs.append_samples(s, taken.id, taken.attempt, rows)
        # Ended, or its lease would run out and the next test's worker would be handed this run.
        runs.finish(s, taken.id, taken.attempt, stage.RunStatus.CANCELLED, {})
        token = signed(server.KEY, accounts.open_session(s, admin.id))
        s.commit()
    context = desk.watch.context(token)
    for path in ("", "/judge", "/runs", f"/runs/{run.id}", "/policies", "/data", "/people"):
        page = desk.open(context, path if path != "/judge" else "/judge?")
        expect(page.locator(".brand span")).to_have_text(bad)
        page.wait_for_timeout(100)
        page.close()
    page = desk.open(context, f"/runs/{run.id}")
    expect(page.locator(".samples .text").last).to_contain_text(PAYLOADS[5])
    assert dialogs == []
