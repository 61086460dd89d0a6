"""The `loyalty` command: a house on one machine, and what operators do."""
