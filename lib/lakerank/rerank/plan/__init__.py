"""How a run is planned: the steps of `lakerank.plan`, distributed. `builder` names them in order.

`steps` (index, number, join, lookup, split, cut) · `builder` · `next_stage`. No step has a table in the
driver, which only sees counts; rows move between tasks as compressed Arrow batches. What each step reads, exchanges
and writes: docs/planning.md.
"""
