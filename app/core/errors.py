"""What can go wrong in words for a person: the store raises these, the pages and the command line show them."""


class PairwrightError(Exception):
    """A refusal with what happened and, where there is one, what mends it."""

    def __init__(self, message: str, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend


class NotFound(PairwrightError):
    """The thing does not exist, or not in this project."""


class Forbidden(PairwrightError):
    """The person is known and may not do this."""


class Conflict(PairwrightError):
    """The request was understood and contradicts what has already happened."""


class Invalid(PairwrightError):
    """The request makes no sense as it stands."""


class Unavailable(PairwrightError):
    """Something that is needed does not answer right now; trying again later may help."""


class TooMany(Forbidden):
    """The same was tried too often; waiting helps."""
