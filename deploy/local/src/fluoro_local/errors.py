"""The one error of this package: something on this machine is in the way, and the message says what to do."""


class StartError(Exception):
    """A server or a service cannot start, or did not come up.

    The message is one paragraph for a person, if need be followed by the tail of a log. It is shown
    without a traceback.
    """
