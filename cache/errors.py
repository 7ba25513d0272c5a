"""The one exception type that is meant for the person at the terminal."""


class UserError(Exception):
    """Something the user can put right: bad input, a missing file, an impossible option.

    The message is one line: what was found, where, what was expected, what to do. It is raised where that knowledge is
    and printed in one place (`zeus_union.cache.terminal`), with exit code 2.
    """


class JobError(UserError):
    """No subject's fault, and the next one would meet it too: the whole job stops."""


class NoSpaceError(JobError):
    """A disk without the space for what comes next."""


class ServerError(JobError):
    """A model server that does not answer, or answers what is of no use."""


def first_line(error: BaseException) -> str:
    """What an exception says, in a message's space: its first line, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
