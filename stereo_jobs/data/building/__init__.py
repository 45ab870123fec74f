"""Makes a manifest from what people have: lines of text, tables of any kind, a folder of pictures.

| module | what it does |
|---|---|
| `build` | the whole way: opens the source, chooses columns, gives ids, checks, writes |
| `publish` | writes tables as one Parquet file under a name that is still free |
| `source` | what all kinds of sources have in common, and where their bytes lie |
| `rows` | sources that are read row by row, from cells to columns; lines of text |
| `delimited` | CSV and TSV |
| `json_rows` | JSON lines and JSON arrays |
| `tables` | Parquet and Arrow files, folders of them, folders of the library `datasets` |
| `pictures` | folders of pictures |
"""
