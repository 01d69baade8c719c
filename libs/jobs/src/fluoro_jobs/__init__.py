"""The ledger, dispatch and the worker runtime: the only code that knows SQL and Celery."""
