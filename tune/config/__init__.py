"""A search's configuration: its schema, its checks, its axes, and the order of its trials.

All other packages of `tune` may import this one; it imports none of them.
"""
