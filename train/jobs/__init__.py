"""What the commands do, each from its options to its files. All but `examination` load torch."""
