"""The text lake of `make demo-text`: sections of Python's manual, asked for by the questions of its own FAQ."""
