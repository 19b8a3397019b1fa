"""Detectors of answers that go wrong: each turns what is captured of a token into a score, larger is worse.

Causal: a score rests on the tokens up to its own. The same code judges in the server, in `geom run` and in evaluations.
observations -> one module a detector -> registry. What each is worth: docs/evaluation.md.
"""
