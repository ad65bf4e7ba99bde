"""Processes of a run: where they run, what ends them, and with which precision they compute."""
