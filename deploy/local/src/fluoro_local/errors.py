"""The one error of this package."""


class StartError(Exception):
    """A server or a service cannot start, or did not come up.

    The message tells a person in one paragraph what to do. The tail of a log may follow. It is
    shown without a traceback.
    """
