"""The version of this package, in a module of its own: code can read it without importing the package root."""

__version__ = "0.1.0"
