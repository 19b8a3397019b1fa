"""The manifold learned from stored traffic: clusters of fingerprints, what they mean, a map of them, and artifacts.

points -> pipeline (reduction, clusters, traits, calibration) -> artifacts -> classification. Times, sizes and what the
artifacts hold: docs/discovery.md.
"""
