"""Files on this machine and on object stores, written whole and checked.

Knows nothing of what is in them, and imports nothing of the project but its errors.
"""
