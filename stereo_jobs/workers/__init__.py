"""Workers: the rows of a shard -> pairs -> one committed shard, in this process or as Ray actors.

| module | what it answers |
|---|---|
| `task` | what the driver and its workers exchange, and what the driver asks of a pool |
| `worker` | how a worker makes and commits one shard |
| `reading` | how a shard's rows are read, and decoded ahead of the models |
| `encoding` | how a pair becomes a row of the dataset |
| `batch_size` | how many left images are generated together, where GPU memory is short |
| `patience` | how long a store that does not answer is waited for |
| `timed_threads` | what reads, decodes, scores and encodes rows, and which row missed its deadline |
| `local_pool` | the one worker of a run in this process |
| `ray` | workers as Ray actors |
| `prometheus` | which numbers of a run Prometheus can read |
"""
