"""What the user gave is wrong, and errors of others on one line."""


class InputError(ValueError):
    """What the user gave is wrong. The message says what was given, what is allowed and what
    to type, on one line; only a list of bad rows has several."""


def one_line(error: object, most: int = 200) -> str:
    """What an error says, on one line of at most so many characters; its kind if it is silent."""
    return " ".join(str(error).split())[:most] or type(error).__name__
