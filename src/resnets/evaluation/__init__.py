"""Score, rank and draw: metrics with intervals, tests of significance, tables and pictures."""
