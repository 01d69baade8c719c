"""From stored pixel data to modality values, and to what a screen shows.

PS3.3 C.7.6.3, C.11.1, C.11.2.
"""
