"""Writes files whole, on this machine and on object stores, and checks them.

This package knows nothing of the files' contents, and imports nothing of the project but errors.
"""
