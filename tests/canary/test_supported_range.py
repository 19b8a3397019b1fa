"""Every hook target and name that the plugin stands on, in every SGLang release that it says it supports."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from geomcli.kernels import tap
from geomcli.server_patch import flags, hooks, transport
from geomcli.server_patch.hooks import HOOKS, REQUIRED_NAMES, Hook
from tests.canary.releases import VERSIONS, definition, module, parameters, wheel

ROOT = Path(__file__).parents[2]
# What bodies read off SGLang's objects, and a file that must mention it: (attribute, module).
ATTRIBUTES = (
    ("output_ids", "sglang.srt.managers.io_struct"),
    ("prompt_tokens", "sglang.srt.managers.io_struct"),
    ("rid_to_state", "sglang.srt.managers.tokenizer_manager"),
    ("require_reasoning", "sglang.srt.managers.io_struct"),
    ("reasoning_parser", "sglang.srt.entrypoints.openai.serving_chat"),
    ("template_manager", "sglang.srt.entrypoints.openai.serving_chat"),
    ("_get_reasoning_from_request", "sglang.srt.entrypoints.openai.serving_chat"),
    ("apply_chat_template", "sglang.srt.entrypoints.openai.serving_chat"),
    ("force_reasoning", "sglang.srt.parser.template_manager"),
    ("finished_reasons", "sglang.srt.managers.io_struct"),
    ("TOP_K_ALL", "sglang.srt.sampling.sampling_params"),
    ("temperatures", "sglang.srt.sampling.sampling_batch_info"),
    ("top_ps", "sglang.srt.sampling.sampling_batch_info"),
    ("top_ks", "sglang.srt.sampling.sampling_batch_info"),
    ("is_all_greedy", "sglang.srt.sampling.sampling_batch_info"),
    ("need_top_p_sampling", "sglang.srt.sampling.sampling_batch_info"),
    ("need_top_k_sampling", "sglang.srt.sampling.sampling_batch_info"),
    ("sampling_info", "sglang.srt.model_executor.forward_batch_info"),
    ("origin_input_ids", "sglang.srt.managers.schedule_batch"),
    ("extend_seq_lens", "sglang.srt.model_executor.forward_batch_info"),
    ("extend_prefix_lens_cpu", "sglang.srt.model_executor.forward_batch_info"),
    ("orig_seq_lens", "sglang.srt.managers.schedule_batch"),
    ("kv_allocated_len", "sglang.srt.managers.schedule_batch"),
    ("kv_committed_len", "sglang.srt.managers.schedule_batch"),
    ("cache_protected_len", "sglang.srt.managers.schedule_batch"),
    ("decode_batch_idx", "sglang.srt.managers.schedule_batch"),
    ("skip_radix_cache_insert", "sglang.srt.managers.schedule_batch"),
    ("seq_lens_cpu", "sglang.srt.model_executor.forward_batch_info"),
    ("req_pool_indices", "sglang.srt.model_executor.forward_batch_info"),
    ("token_to_kv_pool", "sglang.srt.model_executor.model_runner"),
    ("req_to_token_pool", "sglang.srt.model_executor.model_runner"),
    ("get_key_buffer", "sglang.srt.mem_cache.memory_pool"),
    ("kv_indices", "sglang.srt.layers.attention.triton_backend"),
    ("kv_indptr", "sglang.srt.layers.attention.triton_backend"),
    ("aux_tensors", "sglang.srt.layers.attention.triton_backend"),
    ("k_scale_float", "sglang.srt.layers.radix_attention"),
    ("copy_done", "sglang.srt.managers.utils"),
    ("qk_head_dim", "sglang.srt.layers.radix_attention"),
    ("tp_q_head_num", "sglang.srt.layers.radix_attention"),
    ("tp_k_head_num", "sglang.srt.layers.radix_attention"),
    ("sliding_window_size", "sglang.srt.layers.radix_attention"),
    ("xai_temperature_len", "sglang.srt.layers.radix_attention"),
    ("use_sliding_window_kv_pool", "sglang.srt.layers.attention.triton_backend"),
    ("decode_backend", "sglang.srt.layers.attention.hybrid_attn_backend"),
    ("prefill_backend", "sglang.srt.layers.attention.hybrid_attn_backend"),
    ("attention_arch", "sglang.srt.configs.model_config"),
    ("is_in_breakable_cuda_graph", "sglang.srt.model_executor.runner_utils.capture_mode"),
    ("attn_tp_group", "sglang.srt.runtime_context"),
    ("attn_tp_rank", "sglang.srt.runtime_context"),
    ("attn_tp_size", "sglang.srt.runtime_context"),
    ("sliding_window_size", "sglang.srt.model_executor.model_runner"),
    ("context_len", "sglang.srt.configs.model_config"),
    ("hf_text_config", "sglang.srt.configs.model_config"),
    ("device_cache", "sglang.srt.state_capturer.base"),
    ("topk_size", "sglang.srt.state_capturer.base"),
    ("topk_weights", "sglang.srt.layers.moe.topk"),
    ("attn_mqa", "sglang.srt.models.deepseek_v2"),
    ("attn_mha", "sglang.srt.models.deepseek_v2"),
    ("w_kc", "sglang.srt.models.deepseek_v2"),
    ("cached_tokens", "sglang.srt.managers.schedule_batch"),
    ("last_node", "sglang.srt.managers.schedule_batch"),
    ("extra_key", "sglang.srt.managers.schedule_batch"),
    ("token_to_kv_pool_allocator", "sglang.srt.mem_cache.unified_radix_cache"),
)

SCHEDULE_BATCH = "sglang.srt.managers.schedule_batch"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("hook", HOOKS, ids=lambda h: h.target.removeprefix("sglang.srt."))
def test_a_hook_target_has_the_parameters_that_its_body_takes(hook: Hook, version: str) -> None:
    target = definition(version, hook.target)
    assert target is not None, f"{hook.target} is not in SGLang {version}"
    missing = set(hook.parameters) - parameters(target)
    assert not missing, f"{hook.target} of SGLang {version} has lost {missing}"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("backend", "file"),
    [
        ("TorchNativeAttnBackend", "torch_native_backend"),
        ("TritonAttnBackend", "triton_backend"),
        ("FlashAttentionBackend", "flashattention_backend"),
        ("FlashInferAttnBackend", "flashinfer_backend"),
    ],
)
def test_backends_that_are_wrapped_take_what_the_wrappers_hand_on(backend: str, file: str, version: str) -> None:
    assert backend in flags.BACKENDS
    for method in ("forward_decode", "forward_extend"):
        target = definition(version, f"sglang.srt.layers.attention.{file}.{backend}.{method}")
        assert target is not None
        wanted = {"q", "k", "v", "layer", "forward_batch"}
        if (backend, method) == ("TritonAttnBackend", "forward_decode"):
            wanted |= {"sinks", "score_mod", "aux_tensors"}
        assert wanted <= parameters(target), (version, backend, method)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_decode_kernel_calls_a_score_mod_with_the_arguments_of_the_tap(version: str) -> None:
    kernel = module(version, "sglang.kernels.ops.attention.decode_attention")
    assert kernel is not None
    calls = [n for n in ast.walk(kernel) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "SCORE_MOD"]
    assert calls
    taken = parameters(ast.parse(inspect.getsource(tap.store_logits.fn)).body[0])
    # qk, q_pos, kv_pos, q_idx, head, mask, and of the first aux tensor: pointer, two strides, length.
    assert all(len(call.args) + len(call.keywords) == len(taken) == 10 for call in calls)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_bodies_use_exists(version: str) -> None:
    missing = [name for name in REQUIRED_NAMES if definition(version, name) is None]
    for attribute, where in ATTRIBUTES:
        tree = module(version, where)
        names = set() if tree is None else _names(tree)
        if attribute not in names:
            missing.append(f"{where}:{attribute}")
    assert not missing


def _names(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_the_triton_backend_lists_as_many_keys_as_its_window_has_before_the_query(version: str) -> None:
    """One less than its prefill sees: what device.triton_decode_window and deviations.py say."""
    made = definition(version, "sglang.srt.layers.attention.triton_backend.update_sliding_window_buffer")
    assert made is not None
    assert "torch.minimum(seq_lens, torch.tensor(sliding_window_size))" in ast.unparse(made)


@pytest.mark.parametrize("version", VERSIONS)
def test_torch_native_knows_no_soft_cap(version: str) -> None:
    backend = module(version, "sglang.srt.layers.attention.torch_native_backend")
    assert backend is not None
    assert "logit_cap" not in ast.unparse(backend)


@pytest.mark.parametrize("version", VERSIONS)
def test_experts_are_stored_by_token_and_layer(version: str) -> None:
    capture = definition(version, "sglang.srt.state_capturer.base.BaseDeviceCache.capture")
    assert capture is not None
    assert "self.buffer[:batch, layer_id, :] = topk_indices" in ast.unparse(capture)
    router = definition(version, "sglang.srt.layers.moe.topk.TopK.__init__")
    assert router is not None
    assert "self.layer_id = layer_id" in ast.unparse(router)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_request_gives_its_lock_on_the_prefix_cache_back_in_one_of_three_ways(version: str) -> None:
    cache = "sglang.srt.mem_cache.unified_radix_cache.UnifiedRadixCache"
    number = tuple(map(int, version.split(".")))
    if number >= (0, 5, 22):
        assert definition(version, f"{cache}.unlock") is not None
    elif number >= (0, 5, 20):
        release = definition(version, f"{cache}._dec_req_lock")
        assert release is not None
        assert "skip_swa" in parameters(release)
    else:
        # The root is locked by nobody: giving it back changes nothing.
        released = definition(version, "sglang.srt.mem_cache.radix_cache.RadixCache.dec_lock_ref")
        assert released is not None
        assert "while node != self.root_node" in ast.unparse(released)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_requests_accounts_are_kept_in_one_of_two_places(version: str) -> None:
    names = ("req_pool_idx", "cache_protected_len", "kv_committed_len")
    kept = definition(version, f"{SCHEDULE_BATCH}.ReqKvInfo")
    assert kept is not None
    assert "kv_allocated_len: int" in ast.unparse(kept)
    on_kv = [f"{name}:" in ast.unparse(kept) for name in names]
    assert on_kv == [tuple(map(int, version.split("."))) >= (0, 5, 20)] * len(names)
    if not all(on_kv):
        made = definition(version, f"{SCHEDULE_BATCH}.Req.__init__")
        assert made is not None
        assert all(f"self.{name}" in ast.unparse(made) for name in names)


@pytest.mark.parametrize("version", VERSIONS)
def test_statistics_reach_the_host_in_one_of_two_ways(version: str) -> None:
    native = module(version, "sglang.srt.managers.auxiliary_output") is not None
    assert native is (tuple(map(int, version.split("."))) >= (0, 5, 20))
    if native:
        assert definition(version, "sglang.srt.managers.auxiliary_output.append_auxiliary_output") is not None
    else:
        assert definition(version, transport.COPY_TARGET) is not None
        assert definition(version, "sglang.srt.managers.utils._async_d2h") is not None


def test_the_check_notices_a_lost_target_and_a_lost_parameter() -> None:
    assert definition(VERSIONS[0], "sglang.srt.server_args.ServerArgs.no_such_method") is None
    assert definition(VERSIONS[0], "sglang.srt.no_such_module.Thing") is None
    known = next(h for h in HOOKS if h.target.endswith("ServerArgs.add_cli_args"))
    found = definition(VERSIONS[0], known.target)
    assert found is not None
    assert {"parser", "no_such_parameter"} - parameters(found) == {"no_such_parameter"}


def test_the_range_that_is_promised_is_the_range_that_is_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = next(r for r in project["optional-dependencies"]["engine"] if r.startswith("sglang"))
    low, high = re.fullmatch(r"sglang>=0\.5\.(\d+),<0\.5\.(\d+)", promised).groups()  # type: ignore[union-attr]
    assert (f"0.5.{low}", f"0.5.{int(high) - 1}") == (VERSIONS[0], VERSIONS[-1])
    readme = (ROOT / "README.md").read_text()
    assert f"{VERSIONS[0]} to {VERSIONS[-1]}" in readme
    assert {h.role for h in HOOKS} == {hooks.MAIN, hooks.SCHEDULER}
    assert all(wheel(version).namelist() for version in VERSIONS)
