"""The error that is the user's to mend."""


class UserError(ValueError):
    """Input that cannot be used: options, data, or files of earlier runs.

    Commands show its message without a traceback. Code raises it where it checks what a
    user gave, and nowhere else: any other ValueError is a fault of the program.
    """
