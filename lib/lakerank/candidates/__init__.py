"""The first stage: BM25, run files of other systems, and the fusion of several lists into one table of candidates."""
