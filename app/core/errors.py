"""What can go wrong in words for a person: the store raises these, the pages and the command line show them."""


class PairwrightError(Exception):
    """A refusal with what happened and, where there is one, what mends it.

    Both are English and whole sentences. What varies in them is named, `%(least)s`, and given as a value, so that the
    pages can look the sentence up in another language before they fill it (`app.web.language`).
    """

    def __init__(self, message: str, mend: str = "", **values: object) -> None:
        self.sentences, self.values = (message, mend), values
        self.message, self.mend = (sentence % values if values else sentence for sentence in self.sentences)
        super().__init__(self.message)


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
