"""What each command of `fluoro` does. It ends with an exit code."""
