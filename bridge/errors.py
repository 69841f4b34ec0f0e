"""The one error a user is meant to read: bad input, said in one line."""


class InputError(ValueError):
    """What a user gave is wrong: `what: expected x, got y, where; what to do next`."""
