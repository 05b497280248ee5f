"""What training and scoring cost on this machine, measured; run as modules, `python -m benchmarks.training`."""
