"""The stages of one pair: a row's own (`inputs`), its left view (`lefts`), its right view with labels (`rights`)."""
