"""Benchmarks of fastloss for asv. What they share is in cases.py (arrays) and calls.py (what is timed)."""
