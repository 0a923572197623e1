"""Stored script: what a model or a person writes is read; nothing of it runs, is fetched or takes the keyboard."""

import uuid

import pytest
from playwright.sync_api import Page, expect

from app.core.vocabulary import Role, RunKind, Verdict
from app.store import accounts, comparisons, judgments, prompts, runs
from app.store.claims import claim
from app.store.judgments import Submission
from app.store.models import Prompt
from app.web.security import signed
from tests.browser import server, stage
from tests.browser.conftest import settle, shown
from tests.browser.payloads import PAYLOADS

TOGETHER = 40
# What must not be in any text: what takes the keyboard, beside links and what scrolls; names; our own hooks.
STRANGE = """() => {
    const ours = new Set(["class", "dir", "lang", "href", "rel", "target", "start", "tabindex", "role", "aria-label"]);
    const found = [];
    for (const node of document.querySelectorAll(".text *")) {
        const math = node.closest("math");
        for (const { name } of node.attributes) {
            if (!ours.has(name) && !(math && /^[a-z]+$/.test(name) && !name.startsWith("on") && name !== "href"))
                found.push(node.outerHTML.slice(0, 200));
        }
        const focusable = node.tabIndex >= 0 && !node.matches("a[href^=http], [role=group][tabindex='0']");
        if (focusable || node.shadowRoot || node.id || node.name) found.push(node.outerHTML.slice(0, 200));
        if (node.localName === "a" && (node.target !== "_blank" || !node.relList.contains("noopener")))
            found.push(node.outerHTML.slice(0, 200));
        if (node.matches("script, style, img, svg, iframe, form, input, button, link, meta, base, template, video"))
            found.push(node.outerHTML.slice(0, 200));
    }
    return found;
}"""


def stored(payload: str) -> str:
    """As the database can hold it."""
    return payload.replace("\0", "")


@pytest.fixture
def dialogs(watch):
    """Dialogs, popups and navigations that any page of the test has seen."""
    seen: list[str] = []
    original = watch.page

    def page(context):
        opened = original(context)
        opened.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
        opened.on("popup", lambda popup: seen.append(popup.url))
        opened.add_init_script(
            "addEventListener('securitypolicyviolation', e => console.error('policy', e.violatedDirective))"
        )
        return opened

    watch.page = page
    return seen


def moved_over(page: Page) -> None:
    """The pointer goes over a text and the keyboard through the page: what waits for either would wake."""
    page.mouse.move(300, 300)
    page.mouse.move(700, 400)
    for _ in range(3):
        page.keyboard.press("Tab")


def test_the_corpus_is_wide():
    assert len(set(PAYLOADS)) == len(PAYLOADS) > 300


def test_hundreds_of_payloads_are_read_each_for_itself(desk_of, dialogs):
    desk = desk_of(0)
    turns = [{"role": ("user", "assistant")[i % 2], "content": stored(text)} for i, text in enumerate(PAYLOADS)]
    with desk.sessions() as s:
        prompts.add_prompts(s, desk.project, [[*turns, {"role": "user", "content": "Well?"}]], "test")
        prompt = s.query(Prompt).filter_by(project_id=desk.project.id).one()
        answers = [stage.sampled(desk.policy, text, i) for i, text in enumerate(("Left.", "**Right.**"))]
        comparisons.add_sampled_pair(s, desk.project, prompt.id, answers)
        s.commit()
    page = desk.open()
    assert page.locator("[data-turn]").count() == len(PAYLOADS) + 1
    assert page.evaluate(STRANGE) == []
    expect(page.locator("[data-answer] strong")).to_have_text("Right.")
    page.evaluate("document.documentElement.classList.add('raw-text')")
    assert page.locator("[data-turn] .raw").first.is_visible()
    assert page.evaluate(STRANGE) == []
    moved_over(page)
    page.wait_for_timeout(200)
    assert page.url.endswith("/judge")
    assert dialogs == []


def test_answers_and_prompts_are_texts_while_they_are_judged(desk_of, dialogs):
    desk = desk_of(0)
    heaps = ["\n\n".join(map(stored, PAYLOADS[i : i + TOGETHER])) for i in range(0, len(PAYLOADS), TOGETHER)]
    with desk.sessions() as s:
        texts = [(f"{heap}\n\nasked", f"{heap}\n\nleft", f"{heap}\n\nright") for heap in heaps]
        stage.fill(s, desk.project, desk.policy, 0, texts)
        s.commit()
    page = desk.open()
    for _ in heaps:
        task = page.locator("[data-task]:not([hidden])")
        sides = sorted(task.locator(f'[data-answer="{side}"]').inner_text().split()[-1] for side in ("left", "right"))
        assert sides == ["left", "right"]
        assert page.evaluate(STRANGE) == []
        before = shown(page)
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("id => !document.querySelector(`[data-comparison='${id}']`)", arg=before)
        settle(page)
    assert dialogs == []
    assert desk.total() == len(heaps)


def test_guidelines_names_and_samples_are_text_on_every_other_page(desk_of, dialogs):
    bad = PAYLOADS[0] + PAYLOADS[8]
    desk = desk_of(30, guidelines="\n\n".join(map(stored, PAYLOADS[:200])))
    desk.project.name = bad
    with desk.sessions() as s:
        s.merge(desk.project)
        admin = stage.person(s, f"{bad} {uuid.uuid4()}", desk.project, Role.ADMIN)
        for _ in range(30):
            [task] = claim(s, desk.project.id, admin.id, 1)
            submission = Submission(task.comparison_id, uuid.uuid4(), Verdict.LEFT, task.order)
            judgments.submit(s, desk.project.id, admin.id, submission)
        reward = stage.register(s, desk.project, stage.CheckpointKind.REWARD_MODEL, None, desk.policy, {})
        run = runs.enqueue(s, desk.project.id, RunKind.PPO, admin.id, reward_model_id=reward.id)
        taken = runs.claim_run(s, "test")
        assert taken is not None
        first = s.query(Prompt).filter_by(project_id=desk.project.id).first()
        text = "\n\n".join(map(stored, PAYLOADS[200:]))
        runs.append_samples(s, taken.id, taken.attempt, [{"step": 1, "prompt_id": str(first.id), "completion": text}])
        # Ended, or its lease would run out and the next test's worker would be handed this run.
        runs.finish(s, taken.id, taken.attempt, stage.RunStatus.CANCELLED, {})
        token = signed(server.KEY, accounts.open_session(s, admin.id))
        s.commit()
    context = desk.watch.context(token)
    for path in ("", "/judge", "/runs", f"/runs/{run.id}", "/policies", "/data", "/people"):
        page = desk.open(context, path if path != "/judge" else "/judge?")
        expect(page.locator(".brand span")).to_have_text(bad)
        assert page.evaluate(STRANGE) == []
        page.wait_for_timeout(100)
        page.close()
    assert dialogs == []
