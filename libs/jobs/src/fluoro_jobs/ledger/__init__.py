"""The ledger: what is true. PostgreSQL behind plain functions on a connection.

Start at `graph.py` (what a transition does), then `store.py` (how it becomes durable in one
statement).
"""
