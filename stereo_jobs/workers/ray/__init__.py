"""Workers as Ray actors. Beside it only `launch/submit.py` and `workers/prometheus.py` import Ray.

| module | what it answers |
|---|---|
| `pool` | how many actors there are; which are lost, late, or about to be preempted |
| `actor_state` | what state an actor is in: waiting, loading, ready or draining |
| `actors` | a worker as a Ray actor |
| `heartbeats` | which batch each worker is generating, known even after its death |
| `cluster` | which cluster, its head and its nodes |
| `blocklist` | at which places shard after shard fails |
| `preemption` | is this machine about to be taken away |
"""
