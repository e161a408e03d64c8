"""Multi-turn evaluation: methods × suites → records → report.

A dialogue is replayed with its own (gold) messages. Whenever a segment is closed, each method shrinks
what it keeps of the past to the same number of entries, and the base model reads on from there.
"""
