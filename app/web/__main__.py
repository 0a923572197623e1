"""`python -m app.web` writes docs/access.md."""

from app.web.access import table
from app.web.pages import ROOT
from app.web.routes import ROUTERS

(ROOT / "docs" / "access.md").write_text(table(ROUTERS))
