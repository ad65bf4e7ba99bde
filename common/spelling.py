"""Option names as people type them: _ and - are one."""

# For a click command's context_settings.
EITHER = {"token_normalize_func": lambda name: name.replace("_", "-")}
