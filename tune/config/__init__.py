"""A search's configuration: its schema, its checks, its axes and what makes one trial better than
another. The ground of the package: imports nothing else of `tune`.
"""
