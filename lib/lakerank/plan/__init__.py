"""What a plan is, and the logic of its steps over Arrow tables. No engine: `spark/plan/` distributes the steps.

`plan` (records, addresses and files) · `index` (key index, query list) · `pairs` (join) · `lookup` (stored scores) ·
`partitions` (split) · `units` (cut) · `forecast`.
"""
