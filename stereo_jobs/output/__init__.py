"""What an output says: its plans, shards, records and lease. Imports neither Ray nor torch."""
