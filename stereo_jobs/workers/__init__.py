"""Workers: rows of a shard -> pairs -> one committed shard, in this process or as Ray actors."""
