"""`python -m fastloss bench`, and what the other benchmarks measure with: batches, calls, and times of calls that take
turns."""
