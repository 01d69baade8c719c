"""What Fluoro is measured against: the same work by the barest means, or by the means it replaces.

`python -m peers.NAME PORT`.
"""

from typing import Final

VISIBILITY_SECONDS: Final = 30
"""After this, stock Celery gives what a killed worker held to another.

A task may take no longer; Celery's default is an hour.
"""
