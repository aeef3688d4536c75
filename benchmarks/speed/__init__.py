"""The benchmark of speed, one file a question: `python -m benchmarks.speed`."""
