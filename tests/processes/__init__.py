"""How tests start processes: forked from one that has imported what takes seconds, torch above all.

`client` starts them, `server` is the process that they are forked from, `spawned` does the same for the processes that these
start in turn. Each is a process of its own in all that a test can see: arguments, folder, environment, standard streams,
signals, session, exit code. What is about the start of Python itself (its imports, variables that libraries read when they
are loaded) takes `subprocess` as ever.
"""
