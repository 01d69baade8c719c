"""Who calls, and what they may do. `docs/identity.md` is the operator's page."""
