"""What each network needs and reaches on a generated world: python -m tests.bench.networks."""
