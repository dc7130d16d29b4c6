"""Whole models on real data: plain torch.nn code and one line that accelerates it."""
