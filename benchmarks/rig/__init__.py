"""What every benchmark needs: servers and processes that end with it, load, and figures.

Found because a script's folder is on the path.
"""
