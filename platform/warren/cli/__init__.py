"""The command line: the options of every job, its exit codes, and the commands that need no cluster."""
