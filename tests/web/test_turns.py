"""More requests at once than there are connections and threads."""

import asyncio

import anyio
import httpx

from app.store import accounts
from app.web.security import signed
from tests.web.conftest import FETCHING, HERE, Cast, House


def test_a_crowd_waits_its_turn_and_nobody_is_refused(house: House, cast: Cast):
    with house.store() as s:
        token = accounts.open_session(s, cast.people["admin"].id)
    connections = house.app.state.engine.pool.size()

    async def crowd() -> list[int]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = connections + 2
        line = httpx.ASGITransport(app=house.app, raise_app_exceptions=False)
        cookies = {"pairwright": signed(house.app.state.key, token)}
        async with httpx.AsyncClient(transport=line, base_url=HERE, cookies=cookies, headers=FETCHING) as browser:
            page = f"/p/{cast.project.slug}/people"
            found = await asyncio.gather(*(browser.get(page, timeout=60) for _ in range(6 * connections)))
            return [answer.status_code for answer in found]

    assert set(asyncio.run(crowd())) == {200}
