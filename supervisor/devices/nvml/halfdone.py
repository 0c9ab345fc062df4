"""A change that was refused half-way, and could not be taken back."""


class HalfDone(Exception):
    """A change that was refused in *call*, and could not be undone; says what is left."""

    def __init__(self, left: str, call: str, cause: Exception) -> None:
        super().__init__(left)
        self.call = call
        self.cause = cause
