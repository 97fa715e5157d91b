"""Tests in folders that mirror the sources.

`helpers/` and `conftest.py` hold what they share.
"""
