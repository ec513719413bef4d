"""What a plan is, and the logic of its steps over Arrow tables. `rerank/plan/` distributes the steps.

`plan` (records and files) · `index` (key index, query list) · `pairs` (join) · `lookup` (what earlier runs left) ·
`units` (cut) · `partitions` (split) · `forecast`.
"""
