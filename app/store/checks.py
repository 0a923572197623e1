"""Tasks that check the annotator: gold, whose answer is known, and repeats of what they judged before."""

import uuid
from collections.abc import Sequence

from sqlalchemy.orm import Session


def draw_check(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, held: Sequence[uuid.UUID]) -> uuid.UUID | None:
    """Lease a check to this person where one is due and return its comparison; it has an assignment and no slot."""
    return None
