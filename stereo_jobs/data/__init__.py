"""What goes in and out: object storage, manifests, images, shards, the dataset card."""
