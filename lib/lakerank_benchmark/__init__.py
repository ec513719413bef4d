"""How fast scoring is on this machine, against the published loop and other engines."""
