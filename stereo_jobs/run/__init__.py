"""The job: a plan, its shards, and the run that makes each of them exactly once.

| module | what it answers |
|---|---|
| `layout` | what is called what below the output |
| `plan` | which rows are in which shard; has anything changed since the job began |
| `commits` | is a shard done; what a kill between two writes leaves is made whole again |
| `lease` | is another run at work on this output |
| `worker` | rows -> pairs -> one committed shard, in one process |
| `pool` | what the driver asks of workers; the one worker of a run in this process |
| `ray_pool`, `actors` | workers as Ray actors: how the driver keeps them, and what runs in them |
| `cluster`, `bench` | their cluster: head, nodes, room; places where all fails |
| `notice` | is this machine about to be taken away |
| `driver` | deals shards until all are done |
| `progress` | how far is it, from records alone |
| `watch` | is a run alive, has the job ended |
| `metrics` | numbers for Prometheus |
| `estimate` | what will it take and cost, measured on a few rows |
| `verify` | is every planned id there exactly once |
"""
