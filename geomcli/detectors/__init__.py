"""Detectors of answers that go wrong: each turns what is captured of a token into a score, larger is worse.

Causal: a score rests on the tokens up to its own, and many answers are judged as each of them alone.
"""
