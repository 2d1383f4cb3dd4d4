from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import ModelError
from engine.machine.out_of_memory import is_out_of_memory
from engine.models.checkpoint import Checkpoint
from engine.models.core import find_core
from engine.models.meta import build_on_meta, read_config
from engine.models.selfcheck import layers_to_check, shortened
from engine.models.streaming import teacher as stream
from engine.models.streaming.teacher import StreamedTeacher
from tests.engine.models.architectures import tiny_architecture

CPU = torch.device("cpu")


def streamed(folder: Path) -> StreamedTeacher:
    return StreamedTeacher(folder, dtype=torch.float32, device=CPU)


def changed_copy(folder: Path, target: Path) -> tuple[Path, dict[str, Tensor]]:
    shutil.copytree(folder, target)
    return target, load_file(target / "model.safetensors")


def test_enough_layers_are_checked_to_see_each_kind() -> None:
    def checked(name: str) -> int:
        model = build_on_meta(read_config(tiny_architecture(name)), dtype=torch.float32)
        return layers_to_check(find_core(model).layers)

    assert checked("llama") == 2
    assert checked("gemma3") == 6, "five layers with a window come before the first without"
    assert checked("qwen3_moe") == 2, "one layer is dense, the others are not"


def test_lists_of_one_value_a_layer_are_cut_with_the_layers() -> None:
    config = read_config(tiny_architecture("gemma3"))
    short = shortened(config, 7, 3)
    assert short.num_hidden_layers == 3
    assert short.layer_types == config.layer_types[:3]
    assert len(config.layer_types) == 7, "the model's own configuration stays as it is"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_difference_of_rounding_is_told_and_a_larger_one_refused(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, own = tiny_architecture("llama"), StreamedTeacher._run
    assert StreamedTeacher(folder, dtype=dtype, device=CPU).note == ""

    def off_by(share: float) -> None:
        def run(self: StreamedTeacher, *how: Any) -> list[Tensor]:
            return [(states.double() * (1 + share)).to(states.dtype) for states in own(self, *how)]

        monkeypatch.setattr(StreamedTeacher, "_run", run)

    off_by(1e-6 if dtype == torch.float32 else 5e-3)
    assert "not bit-identical" in StreamedTeacher(folder, dtype=dtype, device=CPU).note
    for share in (0.05, float("nan")):
        off_by(share)
        with pytest.raises(ModelError, match="differs after 2 layers when its layers are streamed"):
            StreamedTeacher(folder, dtype=dtype, device=CPU)


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    folder, tensors = changed_copy(tiny_architecture("llama"), tmp_path / "model")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.2\.mlp\.up_proj\.weight is in no file"):
        streamed(folder)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    folder, tensors = changed_copy(tiny_architecture("llama"), tmp_path / "model")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight is \(31,\) in the files and \(32,\) in the model"):
        streamed(folder)


def test_an_expert_that_is_missing_is_refused(tmp_path: Path) -> None:
    folder, tensors = changed_copy(tiny_architecture("mixtral"), tmp_path / "model")
    name = next(name for name in tensors if ".layers.1." in name and ".experts.3." in name)
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\."):
        streamed(folder)


def test_tensors_that_the_model_does_not_know_are_left_alone(tmp_path: Path) -> None:
    folder, tensors = changed_copy(tiny_architecture("gpt_neox"), tmp_path / "model")
    tensors["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-1e9)  # as old checkpoints have it
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    streamed(folder).close()


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    folder, _ = changed_copy(tiny_architecture("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"already quantised \(gptq\)") as caught:
        streamed(folder)
    assert "--layer_by_layer" in caught.value.todo


def test_weights_that_give_nan_are_refused(tmp_path: Path) -> None:
    folder, tensors = changed_copy(tiny_architecture("llama"), tmp_path / "model")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj\.weight in .* holds NaN or infinity"):
        streamed(folder)


def test_a_table_with_other_values_than_the_constructor_gives_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = stream.build_on_meta

    def wrong_tables(*args: object, **kwargs: object) -> object:
        model = honest(*args, **kwargs)  # type: ignore[arg-type]
        model.model.rotary_emb.inv_freq.mul_(1.01)
        return model

    monkeypatch.setattr(stream, "build_on_meta", wrong_tables)
    with pytest.raises(ModelError, match=r"table model\.rotary_emb\.inv_freq"):
        streamed(tiny_architecture("llama"))


def test_streaming_that_gives_other_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = stream.run_wave

    def slightly_wrong(*args: object, **kwargs: object) -> list[Tensor]:
        return [states * (1 + 1e-3) for states in honest(*args, **kwargs)]  # type: ignore[arg-type]

    monkeypatch.setattr(stream, "run_wave", slightly_wrong)
    with pytest.raises(ModelError, match="differs after 2 layers"):
        streamed(tiny_architecture("llama"))


@pytest.mark.parametrize("error", [RuntimeError("weights on meta"), AttributeError("of None"), IndexError("3")])
def test_a_model_that_needs_more_than_its_layers_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(stream, "run_wave", fail)
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be run layer by layer"):
        streamed(tiny_architecture("llama"))


@pytest.mark.parametrize("where", ["run_wave", "check_streaming"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_lack_of_memory_says_nothing_of_the_model(
    monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(stream, where, fail)
    with pytest.raises(type(error)):
        streamed(tiny_architecture("llama"))


def test_a_lack_of_memory_in_the_reading_thread_comes_out_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = streamed(tiny_architecture("llama"))
    read, threads = Checkpoint.read, set()

    def fail(self: Checkpoint, name: str, out: Tensor, *, first: int = 0) -> None:
        threads.add(threading.current_thread().name)
        if ".2." in name:
            raise RuntimeError("CUDA error: out of memory")
        read(self, name, out, first=first)

    monkeypatch.setattr(Checkpoint, "read", fail)
    with pytest.raises(RuntimeError) as caught:
        teacher.last_hidden_states([torch.ones(1, 4, dtype=torch.int64)])
    assert is_out_of_memory(caught.value)
    assert any(name.startswith("layer-reader") for name in threads)
    teacher.close()


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    # Without a mask the padding on the right would change what comes before it.
    folder, _ = changed_copy(tiny_architecture("gemma3"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["use_bidirectional_attention"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="sees padding on the right"):
        streamed(folder)
