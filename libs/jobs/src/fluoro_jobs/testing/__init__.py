"""For tests of operations and of the runtime.

A real context without a ledger, and a worker that does what its input says.
"""

from fluoro_jobs.testing.context import Attempt, operate, step_context

__all__ = ["Attempt", "operate", "step_context"]
