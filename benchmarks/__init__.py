"""What safesock costs, as ratios to the standard library within one run: `python -m benchmarks`."""
