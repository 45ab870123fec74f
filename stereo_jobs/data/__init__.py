"""Files in and out: storage, manifests, images, shards and the dataset card. No view is generated or scored here.

| module | what it does |
|---|---|
| `objects` | the contract of storage: objects below one URI, with the writes that publish each shard exactly once |
| `storage` | opens storage by its URI; objects in a local folder |
| `s3` | objects on S3, and what its errors mean |
| `s3_access` | the clients of S3 that all storage of a process shares |
| `manifest_files` | finds the files of a manifest, and the columns that folders give them |
| `arrow_types` | types of carried columns: their plain form, and one type for the columns of all files |
| `manifest` | checks manifests; makes a checked row from its cells |
| `manifest_reader` | reads rows, from the planned files only |
| `row_groups` | reads Parquet row groups in bounded memory |
| `building` | makes a manifest from lines of text, tables or a folder of images |
| `reader` | reads the images that a manifest points to, within limits |
| `images` | decodes and encodes images |
| `orientation` | turns pictures, masks and maps upright |
| `colour` | follows ICC profiles to sRGB |
| `tiff` | corrects how Pillow unpacks TIFF files |
| `png` | takes the metadata out of PNG files and corrects their colour keys |
| `jpeg` | takes the metadata out of JPEG files |
| `maps` | decodes depth maps, disparity maps and masks |
| `shards` | one Parquet file of pairs, with failed rows and recipe in its footer |
| `card` | the README.md of a dataset |
"""
