"""The version of this package; on its own, so that job code need not import the package root."""

__version__ = "0.1.0"
