"""Who may do what: the table of routes and roles, walked."""

import re
import uuid
from itertools import product

from fastapi.routing import APIRoute
from sqlalchemy import func, select
from starlette.routing import Mount

from app.core.vocabulary import Role
from app.store.models import Base
from app.web.access import ROLES, Policy, declared, policy_of, table
from app.web.pages import ROOT
from app.web.routes import ROUTERS
from tests.web.conftest import FETCHING, Cast, House

ROWS = declared(ROUTERS)
PROJECT_ROWS = [row for row in ROWS if row[1].startswith("/p/")]


def address(path: str, cast: Cast, slug: str) -> str:
    """A path with this project, and with ids that are nobody's."""
    filled = path.replace("{slug}", slug).replace("{kind}", "ppo")
    return re.sub(r"\{\w+\}", str(uuid.uuid4()), filled)


def test_every_route_declares_exactly_one_policy():
    undeclared = [
        route.path
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and not policy_of(route)
    ]
    assert undeclared == []
    assert len(ROWS) > 30


def test_no_route_stands_outside_the_routers(house: House):
    routers = [getattr(route, "original_router", None) for route in house.app.routes]
    outside = [
        route
        for route, router in zip(house.app.routes, routers, strict=True)
        if router is None and not isinstance(route, Mount)
    ]
    assert outside == []
    assert {id(router) for router in routers if router} == {id(router) for router in ROUTERS}


def test_the_documented_table_is_the_code():
    assert (ROOT / "docs" / "access.md").read_text() == table(ROUTERS), "run python -m app.web"


def counts(house: House) -> dict[str, int]:
    with house.store() as s:
        return {t.name: s.scalar(select(func.count()).select_from(t)) or 0 for t in Base.metadata.sorted_tables}


def test_nobody_gets_past_a_policy_without_signing_in(house: House, cast: Cast):
    browser = house.browser()
    for method, path, policy in ROWS:
        answer = browser.request(method, address(path, cast, cast.project.slug), headers=FETCHING)
        if policy is Policy.PUBLIC:
            assert answer.status_code not in (401, 403), f"{method} {path}"
        else:
            assert answer.status_code == 401, f"{method} {path}"


def test_each_role_gets_what_the_table_says(house: House, cast: Cast):
    browsers = {role: house.browser(cast.people[role.value]) for role in Role}
    for role, (method, path, policy) in product(Role, PROJECT_ROWS):
        answer = browsers[role].request(method, address(path, cast, cast.project.slug), headers=FETCHING)
        if role in ROLES[policy]:
            assert answer.status_code not in (401, 403), f"{method} {path}"
        else:
            assert answer.status_code == 403, f"{method} {path}"
        assert answer.status_code < 500, f"{method} {path}"


def test_somebody_elses_project_does_not_exist(house: House, cast: Cast):
    browser = house.browser(cast.stranger)
    before = counts(house)
    for method, path, _ in PROJECT_ROWS:
        answer = browser.request(method, address(path, cast, cast.project.slug), headers=FETCHING)
        assert answer.status_code == 404, f"{method} {path}"
        unknown = browser.request(method, address(path, cast, "no-such-project"), headers=FETCHING)
        assert (unknown.status_code, unknown.text) == (404, answer.text), f"{method} {path}"
    assert counts(house) == before


def test_a_foreign_id_inside_ones_own_project_does_not_exist(house: House, cast: Cast, admin, make_with):
    with house.store() as s:
        make = make_with(s)
        foreign = make.policy(cast.other)
        pair = make.pair(cast.other, foreign)
        guest = make.person(cast.other)
    base = f"/p/{cast.project.slug}"
    before = counts(house)
    asked = [
        admin.post(f"{base}/policies/{foreign.id}/promote", headers=FETCHING),
        admin.post(f"{base}/people/{guest.id}/deactivate", headers=FETCHING),
        admin.post(f"{base}/skip", data={"comparison_id": str(pair.id)}, headers=FETCHING),
        admin.post(
            f"{base}/judgments",
            data={"comparison_id": str(pair.id), "key": str(uuid.uuid4()), "verdict": "left", "order": "0,1"},
            headers=FETCHING,
        ),
        admin.post(f"{base}/runs", data={"kind": "ppo", "policy_id": str(foreign.id)}, headers=FETCHING),
        admin.get(f"{base}/runs/{uuid.uuid4()}", headers=FETCHING),
        admin.get(f"{base}/runs/not-an-id", headers=FETCHING),
    ]
    assert [answer.status_code for answer in asked] == [404] * len(asked)
    assert counts(house) == before


def test_somebody_deactivated_is_out_at_the_next_request(house: House, cast: Cast, admin, annotator):
    base = f"/p/{cast.project.slug}"
    assert annotator.get(f"{base}/judge").status_code == 200
    admin.post(f"{base}/people/{cast.people['annotator'].id}/deactivate")
    assert annotator.get(f"{base}/judge").status_code == 404


def test_a_person_without_the_role_is_told_where_their_part_is(annotator, cast: Cast):
    answer = annotator.get(f"/p/{cast.project.slug}")
    assert answer.status_code == 403
    assert "Your part in this project is judging" in answer.text
    assert f'href="/p/{cast.project.slug}/judge"' in answer.text
