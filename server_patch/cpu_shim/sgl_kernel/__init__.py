"""Stands in for `sgl_kernel`, which has no CPU build on PyPI, in SGLang's CPU engine.

With SGLANG_USE_CPU_ENGINE=1 SGLang imports a few `*_cpu` functions by name; the one that it calls without speculative
decoding is here, the others raise when called. CUDA names stay an ImportError, as on a machine without the package.
"""

__version__ = "0.0.0+geom.cpu"


def assign_req_to_token_pool_cpu(req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, *_):
    """Write each request's new cache slots into its row of the token table."""
    taken = 0
    for row, start, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        slots = out_cache_loc[taken : taken + end - start]
        req_to_token[row, start:end] = slots.to(req_to_token.dtype)
        taken += end - start


def __getattr__(name):
    if not name.endswith("_cpu"):
        raise AttributeError(name)

    def unavailable(*_args, **_kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} needs a build of sgl_kernel; geom's CPU engine has none")

    return unavailable
