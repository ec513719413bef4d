"""The recipe of the bundled lake and checkpoint."""
