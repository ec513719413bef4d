"""How a run is planned: the steps of `lakerank.plan`, distributed. `builder` names them in order.

| step | reads | exchanges | writes |
|---|---|---|---|
| `index` | rows of table files that have no index yet | | `index/documents`, `index/queries`: keys, sizes, locations |
| number (`index`) | `index/queries` | | `queries/`, sorted by id: from here on a query is a number |
| `join` | candidates, `index/documents` | pairs and documents by document id | `pairs/` by document, `rejects/` |
| `lookup` | `index/scores`, unit files that have no index yet | scores by content | |
| `split` | `pairs/` | pairs and scores by document range | `groups/` of new pairs in file order, `reused/` |
| `cut` | `groups/` | | `units/` of even cost, `unit_lists/` |

No step has a table in the driver, which only sees counts. Rows move between tasks as compressed Arrow batches.
"""
