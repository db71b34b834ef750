"""The one error that a user's input can cause."""


class InputError(ValueError):
    """What the user gave cannot be used. The message names the field, its value, what is allowed, and the remedy.

    The console prints it as one line; any other exception is a defect of ours and keeps its traceback.
    """
