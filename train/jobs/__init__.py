"""What the commands do once torch is loaded: each from its options to its files."""
