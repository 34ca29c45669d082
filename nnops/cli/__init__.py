"""The verbs of `python -m nnops`: one file each."""
