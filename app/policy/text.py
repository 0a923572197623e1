"""Text while its tokens are still being drawn: a piece is given out only when no later token can change it."""

from transformers import PreTrainedTokenizerBase

from app.policy.chat import decode

OFTEN = 256
"""All tokens are decoded each time; in a longer answer every second time, then every third, so that it stays cheap."""


class Unfolding:
    """The pieces of one answer. Joined they are what `decode` makes of all its tokens.

    Held back: the bytes of a character that is not whole yet, and white space, which counts only if something follows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = ""

    def add(self, token: int) -> str:
        """The text that this token made certain; often none."""
        self._ids.append(token)
        if len(self._ids) % (1 + len(self._ids) // OFTEN):
            return ""
        return self._more(decode(self._tokenizer, self._ids).rstrip("\ufffd").rstrip())

    def rest(self, whole: str) -> str:
        """What is left to give out once the whole text is known."""
        return self._more(whole)

    def _more(self, certain: str) -> str:
        # A decoder that mends what stood before can only be followed at the end, by the whole text.
        if not certain.startswith(self._given):
            return ""
        more = certain[len(self._given) :]
        self._given = certain
        return more
