"""Helpers for tests, ours and yours: tiny hosts, and the suites every registered slot member goes through."""
