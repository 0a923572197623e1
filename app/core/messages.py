"""Marks sentences for translators; what a page then says in which language is the web's affair."""


def mark(sentence: str) -> str:
    """The same sentence: imported as `_`, so that `make messages` finds it and the pages translate it later."""
    return sentence
