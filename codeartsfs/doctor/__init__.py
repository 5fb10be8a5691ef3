"""What stands between a user and a mount that works: checks that each look at one thing.

A check is a small function that returns what it found. ``findings.examine`` bounds it in time.
"""
