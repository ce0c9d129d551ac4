"""Benchmarks of sparsevox: `python -m bench` measures, `bench/README.md` says how and holds the numbers."""
