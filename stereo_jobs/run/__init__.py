"""The run: brings an output from its spec to the last committed shard, or estimates what that takes.

| module | what it answers |
|---|---|
| `driver` | how a run dispatches its shards, keeps its lease, drains and ends |
| `prepare` | does the spec agree with the plans in the output; what is new |
| `check_rows` | which rows will fail, and which prompts are not read as meant |
| `queue` | which shard is dispatched next |
| `retry` | what happens to a shard that failed, or whose worker was lost |
| `estimate` | how long the rest takes and what it costs, measured on a few rows |
| `cost_model` | how long the models of another GPU would take for a pair |
| `demo` | what `stereo-jobs demo` runs |
"""
