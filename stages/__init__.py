"""Stages that need both `export` and `engines`: one function a file, what a command calls."""
