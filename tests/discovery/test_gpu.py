"""Which implementation computes: cuML's where it can be imported and there is a GPU, the CPU's with a reason else.

cuML itself is not there: a package of its name, with the signatures of its documentation, takes its place.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import GEOM
from tests.discovery.made_points import filled, planted

CLUSTER = """
import numpy, sklearn.cluster
class HDBSCAN:
    def __init__(self, *, min_cluster_size=5, min_samples=None, cluster_selection_epsilon=0.0, max_cluster_size=0,
                 metric='euclidean', alpha=1.0, p=None, cluster_selection_method='eom', allow_single_cluster=False,
                 gen_min_span_tree=False, verbose=False, output_type=None, prediction_data=False):
        assert output_type == 'numpy', 'labels would stay on the GPU'
        self.size = min_cluster_size
    def fit(self, X, y=None, convert_dtype=True):
        made = sklearn.cluster.HDBSCAN(min_cluster_size=self.size, copy=True).fit(X)
        self.labels_ = made.labels_.astype(numpy.int32)
        return self
"""
MANIFOLD = """
import numpy
class UMAP:
    def __init__(self, *, n_neighbors=15, n_components=2, metric='euclidean', metric_kwds=None, n_epochs=None,
                 learning_rate=1.0, min_dist=0.1, spread=1.0, init='spectral', random_state=None, verbose=False,
                 output_type=None):
        assert (n_components, random_state, output_type) == (2, 3, 'numpy')
    def fit_transform(self, X, y=None, convert_dtype=True):
        return numpy.ascontiguousarray(X[:, :2] + 7, dtype=numpy.float32)
"""
CUPY = "class cuda:\n class runtime:\n  getDeviceCount = staticmethod(lambda: {})\n"


def discovered(folder: Path, files: dict[str, str], *flags: str) -> tuple[dict, str]:
    """(manifest, stderr) of `geom discover` with these modules importable; umap-learn takes half a minute to load."""
    for name, text in files.items():
        path = folder / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    filled(folder / "t.db", planted(30)[0])
    paths = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [GEOM, "discover", "--db", folder / "t.db", "--json", "--seed", "3", *flags]
    done = subprocess.run(command, text=True, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


CUML = {"cuml/__init__.py": "", "cuml/cluster.py": CLUSTER, "cuml/manifold.py": MANIFOLD, "cupy.py": CUPY.format(1)}


def test_cuml_where_it_is_there(tmp_path: Path) -> None:
    manifest, said = discovered(tmp_path, CUML)
    assert manifest["implementations"] == {"clusters": "cuml", "map": "cuml"}
    assert len(manifest["clusters"]) == 5
    assert "cuML" not in said


@pytest.mark.parametrize(("files", "reason"), [
    ({**CUML, "cupy.py": CUPY.format(0)}, "cuML was not used: there is no GPU."),
    ({**CUML, "cupy.py": CUPY.format("1 / 0")}, "cuML was not used: ZeroDivisionError: division by zero."),
    ({"cuml/__init__.py": ""}, "cuML was not used: ModuleNotFoundError: No module named 'cupy'."),
])  # fmt: skip
def test_without_a_gpu_the_cpu_computes_and_says_why(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    manifest, said = discovered(tmp_path, files, "--no-umap")
    assert manifest["implementations"]["clusters"].startswith("scikit-learn 1.")
    assert reason in said
    assert len(manifest["clusters"]) == 5


@pytest.mark.parametrize(("text", "reason"), [
    ("", "AttributeError: module 'cuml.cluster' has no attribute 'HDBSCAN'"),
    (CLUSTER.replace("min_cluster_size=5", "min_size=5"), "TypeError: "),
    (CLUSTER.replace("numpy.int32)", "numpy.int32)[:-1]"), "ValueError: numbers of shape"),
    ("raise ImportError('libcuml++.so')", "ImportError: libcuml++.so"),
], ids=["no-class", "other-signature", "too-few-labels", "no-library"])  # fmt: skip
def test_a_cuml_that_is_not_as_expected_is_not_needed(tmp_path: Path, text: str, reason: str) -> None:
    manifest, said = discovered(tmp_path, {**CUML, "cuml/cluster.py": text})
    assert manifest["implementations"]["clusters"].startswith("scikit-learn 1.")
    assert manifest["implementations"]["map"] == "cuml"
    assert f"cuML was not used for clusters: {reason}" in said
    assert len(manifest["clusters"]) == 5


def test_a_map_that_is_not_finite_is_drawn_by_umap_learn(tmp_path: Path) -> None:
    manifest, said = discovered(tmp_path, {**CUML, "cuml/manifold.py": MANIFOLD.replace("+ 7", "* numpy.nan")})
    assert manifest["implementations"]["clusters"] == "cuml"
    assert manifest["implementations"]["map"].startswith("umap-learn ")
    assert "cuML was not used for map: ValueError: numbers of shape" in said


def test_without_cuml_nothing_is_said_of_it(tmp_path: Path) -> None:
    manifest, said = discovered(tmp_path, {}, "--no-umap")
    assert manifest["implementations"]["clusters"].startswith("scikit-learn 1.")
    assert "cuML" not in said
