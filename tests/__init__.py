"""Tests in folders that mirror the sources.

What they share stands in `helpers/` and `conftest.py`.
"""
