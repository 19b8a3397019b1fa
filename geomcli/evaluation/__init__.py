"""How well detectors of wrong answers do on a served model: questions with known answers, labels, features, tables.

Knows the wire format and arrays; nothing of engines or terminals. Needs no module of `geomcli.detectors`: what is
judged here is what a signal is worth, not one implementation of it.
"""
