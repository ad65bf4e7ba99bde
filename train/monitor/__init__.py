"""What a run says while it works: console, curves, writers."""
