"""De-identification after PS3.15 annex E, with proof: see docs/deidentification.md."""
