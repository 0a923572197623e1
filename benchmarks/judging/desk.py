"""What one person at a desk feels, in Chromium: the first page, and the time from a key to the next text."""

import os
from statistics import median
from typing import Any

from playwright.sync_api import BrowserContext, sync_playwright

from benchmarks.judging.house import PASSWORD, SLUG

SHOWN = "document.querySelector('[data-task]:not([hidden])')?.dataset.comparison"
# From the key's own time to the frame after the one in which another comparison stands there.
WATCH = f"""() => {{
  window.keyTimes = [];
  addEventListener('keydown', (event) => {{
    const before = {SHOWN};
    const look = () => {SHOWN} && {SHOWN} !== before
      ? requestAnimationFrame((now) => window.keyTimes.push(now - event.timeStamp))
      : requestAnimationFrame(look);
    requestAnimationFrame(look);
  }}, true);
}}"""


def measure(address: str, username: str, judgments: int) -> dict[str, Any]:
    """Times in milliseconds and bytes over the line, with an empty cache."""
    with sync_playwright() as playwright:
        path = os.environ.get("PAIRWRIGHT_CHROMIUM") or None
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            with browser.new_context() as first:
                page = first.new_page()
                page.goto(f"{address}/sign-in")
                page.fill("[name=username]", username)
                page.fill("[name=password]", PASSWORD)
                page.press("[name=password]", "Enter")
                page.wait_for_url("**/p/**", timeout=60_000)
                cookies = first.cookies()
            with browser.new_context(viewport={"width": 1366, "height": 850}) as context:
                context.add_cookies(cookies)  # type: ignore[arg-type]
                return desk(context, address, judgments)
        finally:
            browser.close()


def desk(context: BrowserContext, address: str, judgments: int) -> dict[str, Any]:
    """The first page of a fresh profile, then a number of judgments by key."""
    page = context.new_page()
    line = context.new_cdp_session(page)
    line.send("Network.enable")
    sizes: list[float] = []
    line.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto(f"{address}/p/{SLUG}/judge", wait_until="commit")
    first_ms = page.wait_for_function(f"() => {SHOWN} && performance.now()", polling="raf").json_value()
    page.wait_for_load_state("networkidle")
    bytes_loaded = int(sum(sizes))
    page.evaluate(WATCH)
    for number in range(judgments):
        # As fast as the next one is there, not faster: the page keeps one ahead.
        page.wait_for_function("() => document.querySelectorAll('[data-task]').length > 1", timeout=60_000)
        page.keyboard.press("ArrowLeft" if number % 2 else "ArrowRight")
        page.wait_for_function(f"() => window.keyTimes.length > {number}", timeout=60_000)
    times = sorted(page.evaluate("window.keyTimes"))
    return {
        "key_to_text_ms": {
            "median": median(times),
            "p95": times[int(0.95 * (len(times) - 1))],
            "judgments": len(times),
        },
        "first_load_bytes": bytes_loaded,
        "first_comparison_ms": first_ms,
    }
