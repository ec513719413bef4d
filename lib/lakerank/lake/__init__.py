"""The lake: its files and tables, and the protocol of the output folder. The only package with object-store I/O."""
