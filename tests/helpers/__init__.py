"""What tests share: servers on loopback, Ray clusters, drivers and runs that are played.

No test imports from another test.
"""
