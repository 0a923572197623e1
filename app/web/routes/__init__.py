"""The routes, one file a noun. Each loads and authorises by its policy, does one thing, and renders."""

from app.web.routes import accounts, data, health, judge, loop, people, policies, runs

ROUTERS = (
    health.router,
    accounts.router,
    loop.router,
    judge.router,
    runs.router,
    policies.router,
    data.router,
    people.router,
)
