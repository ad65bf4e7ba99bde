"""Everything that only a GPU can tell, by one command on a machine with little else: python -m tests.bench.gpu --out DIR."""
