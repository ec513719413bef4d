"""The protocol of the lake: the only room that does object-store I/O."""
