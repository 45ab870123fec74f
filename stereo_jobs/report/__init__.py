"""What people see of a job: its progress on a terminal, and a page about its dataset.

| module | what it does |
|---|---|
| `terminal` | progress of a run, status and estimate, as a live line or as plain text |
| `problems` | failed rows, and prompts that are not read as meant, as text |
| `page` | one HTML page and one JSON file about a dataset |
| `statistics` | distributions of columns, worst and best pairs |
| `columns` | reads columns, rows and errors of a dataset from its shards |
"""
