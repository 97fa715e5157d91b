"""Helpers that tests share: servers on loopback, Ray clusters, simulated drivers and runs.

No test imports from another test.
"""
