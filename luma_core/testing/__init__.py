"""What every implementation of a contract must do, as tests that a new one subclasses.

Each module needs pytest, which nothing else of this package does:

- `luma_core.testing.backend`: backends, which take steps and code moments.
- `luma_core.testing.codec`: codecs, which store moments.
- `luma_core.testing.rule`: update rules.
- `luma_core.testing.store`: stores, which keep the files of checkpoints.
"""
