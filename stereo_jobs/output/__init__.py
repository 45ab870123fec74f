"""The objects of one dataset: plans, shards, their records, and the lease. Imports neither Ray nor torch.

| module | what it answers |
|---|---|
| `layout` | what is each object below the output called |
| `plan` | which rows are in which shard, and has anything changed since the job was planned |
| `guard` | is the output still the one of this run |
| `audit` | are the shards that are committed already whole, as far as a run checks that |
| `reading` | reads small objects, none of which is trusted |
| `id_hashes` | which id appears twice, at 16 bytes an id |
| `shard_set` | which shards are in a set, at one bit a shard |
| `commits` | which shards are done, and how to complete a commit that was interrupted |
| `lease` | is another run working on this output |
| `progress` | how far is the job, from its records alone |
| `row_errors` | which rows lack their pair, and why |
| `watch` | is a run alive, and has the job ended |
| `verify` | is every planned id there exactly once, and every object intact |
"""
