"""The routes, one file a noun. Each loads and authorises by its policy, does one thing, and renders."""

from app.web.routes.account import router as account
from app.web.routes.accounts import router as accounts
from app.web.routes.chat import router as chat
from app.web.routes.data import router as data
from app.web.routes.drafts import router as drafts
from app.web.routes.guidelines import router as guidelines
from app.web.routes.health import router as health
from app.web.routes.history import router as history
from app.web.routes.judge import router as judge
from app.web.routes.loop import router as loop
from app.web.routes.oidc import router as oidc
from app.web.routes.people import router as people
from app.web.routes.policies import router as policies
from app.web.routes.project import router as project
from app.web.routes.quality import router as quality
from app.web.routes.runs import router as runs
from app.web.routes.write import router as write

ROUTERS = (
    health,
    accounts,
    account,
    oidc,
    loop,
    judge,
    write,
    chat,
    drafts,
    history,
    guidelines,
    runs,
    policies,
    data,
    people,
    quality,
    project,
)
