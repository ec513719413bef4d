"""The command lines, one file a job; job.py holds what they share: options, logging, exit status, the last line."""
