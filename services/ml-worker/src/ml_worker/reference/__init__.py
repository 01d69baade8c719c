"""Trains the reference models of this repository; not needed to serve them."""
