"""The sidecar: fingerprints of live traffic are received, stored, grouped and classified, beside the engine.

messages -> receiver -> storage and clustering; app serves what they know over HTTP. Formats: docs/wire.md.
"""
