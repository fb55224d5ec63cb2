"""A word trained beside the LoRA: what it means to the model, that nothing else moves, and files that programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from security.errors import SafelightError
from tests.tiny import encode, model_files, tiny_dataset, tiny_sd15, tiny_sdxl
from tests.trainer.test_training import final_state, losses, make_config, only_run, prepared, trained
from trainer import events
from trainer.checkpoints import list_checkpoints, load_checkpoint
from trainer.config.files import ConfigError, parse_config
from trainer.config.schema import EmbeddingConfig, TrainConfig
from trainer.embeddings import ExtendedTable, WordTokenizer, add_word, save_word, tables_of, trained_words
from trainer.families import get_family
from trainer.families.base import Components, Conditioning
from trainer.families.clip import prompt_ids, text_model
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.learning_rates import learning_rate_warnings
from trainer.loop import train
from trainer.resume import restore
from trainer.runs import RunFolder
from trainer.setup import Run, prepare
from trainer.step import train_step, window_losses
from trainer.workspace import Workspace

WORD = "zwq"
NAMES = {"sd15": ["string_to_param.*"], "sdxl": ["clip_l", "clip_g"]}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {"sd15": tiny_sd15(folder / "sd15"), "sdxl": tiny_sdxl(folder / "sdxl")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("pictures") / "set", 4)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


def configured(base: Path, pictures: Path, **sections: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "dataset": {"trigger_word": WORD},
        "embedding": {"word": WORD, "num_vectors": 2, "init_words": "red circle", "learning_rate": 0.05},
        "optimizer": {"learning_rate": 1e-3},
        "training": {"max_train_steps": 4, "batch_size": 2},
    }
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes} if isinstance(changes, dict) else changes
    return make_config(base, pictures, **values)


def loaded(base: Path, family: str) -> Components:
    return get_family(family).load(model_files(base, family), "cpu", torch.float32)


def encoded(components: Components, family: str, *prompts: str, length: int = 75) -> Conditioning:
    return encode(get_family(family), components, list(prompts), max_token_length=length)


def same(one: Conditioning, other: Conditioning) -> bool:
    pairs = zip(one.to_tensors().items(), other.to_tensors().items(), strict=True)
    return all(first[0] == second[0] and torch.equal(first[1], second[1]) for first, second in pairs)


# ---- what the word means to the model ----


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_vectors_like_those_of_known_words_mean_those_words(bases: dict[str, Path], family: str) -> None:
    """Bit for bit, in the pooled vector too, which is read at the end mark and not at the highest id."""
    components, plain = loaded(bases[family], family), loaded(bases[family], family)
    known = "red circle"
    count = {len(prompt_ids(tokenizer, known)) for tokenizer in plain.tokenizers}.pop()
    add_word(components, EmbeddingConfig(word=WORD, num_vectors=count, init_words=known))
    long = ", ".join(["simple background"] * 30)
    for prompt in (f"a {WORD} on white", WORD, f"{WORD.upper()}, {WORD}", f"{WORD}'s box", f"{long}, {WORD}"):
        meant = prompt.lower().replace(WORD, known)
        assert same(encoded(components, family, prompt, length=150), encoded(plain, family, meant, length=150)), prompt
    for prompt in ("a red circle", "", f"{WORD}s and a{WORD}"):
        assert same(encoded(components, family, prompt), encoded(plain, family, prompt)), prompt
    with torch.no_grad():
        tables_of(components)[-1].added.weight[0] += 0.5
    assert not same(encoded(components, family, WORD), encoded(plain, family, known))


def test_the_tokenizer_of_the_model_is_left_alone(bases: dict[str, Path]) -> None:
    components = loaded(bases["sdxl"], "sdxl")
    before = [(id(one), len(one), dict(one.get_vocab())) for one in components.tokenizers]
    own = list(components.tokenizers)
    add_word(components, EmbeddingConfig(word=WORD, num_vectors=3))
    assert [(id(one), len(one), dict(one.get_vocab())) for one in own] == before
    for tokenizer, base in zip(components.tokenizers, own, strict=True):
        assert isinstance(tokenizer, WordTokenizer) and tokenizer.base is base
        first = loaded(bases["sdxl"], "sdxl").text_encoders[0].config.vocab_size
        assert prompt_ids(tokenizer, f"a {WORD} b") == [
            *prompt_ids(base, "a"), first, first + 1, first + 2, *prompt_ids(base, "b")
        ]  # fmt: skip
    assert get_family("sdxl").count_tokens(components, f"{WORD} {WORD}") == 6


def test_without_words_to_begin_with_it_begins_as_the_model_reads_it(bases: dict[str, Path]) -> None:
    components, plain = loaded(bases["sd15"], "sd15"), loaded(bases["sd15"], "sd15")
    ids = prompt_ids(plain.tokenizers[0], WORD)
    add_word(components, EmbeddingConfig(word=WORD, num_vectors=len(ids)))
    assert same(encoded(components, "sd15", WORD), encoded(plain, "sd15", WORD))
    with pytest.raises(SafelightError, match=r"embedding\.init_words"):
        add_word(plain, EmbeddingConfig(word=WORD, init_words="   "))


def test_a_word_of_the_models_own_vocabulary_is_told(bases: dict[str, Path]) -> None:
    components = loaded(bases["sd15"], "sd15")
    word = next(one for one in components.tokenizers[0].get_vocab() if one.isascii() and one.isalpha() and len(one) > 2)
    assert "diffusers" in add_word(components, EmbeddingConfig(word=word))[0]
    assert add_word(loaded(bases["sd15"], "sd15"), EmbeddingConfig(word="zwqxj")) == []


# ---- training ----


def frozen(run: Run) -> dict[str, Tensor]:
    """Everything of the text encoders that the base brought."""
    return {
        f"{number}.{name}": one.detach().clone()
        for number, encoder in enumerate(run.components.text_encoders)
        for name, one in encoder.named_parameters()
        if ".added." not in name and ".adapter." not in name
    }


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_word_learns_and_the_table_stays_bit_for_bit(
    bases: dict[str, Path], pictures: Path, workspace: Workspace, family: str
) -> None:
    run = prepared(configured(bases[family], pictures), workspace)
    before, words = frozen(run), trained_words(run.components)[WORD]
    lora = [one.detach().clone() for one in run.parameters]
    for _ in range(2):
        train_step(run)
    after = frozen(run)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(".table.weight" in name for name in before if "token_embedding" in name)
    moved = trained_words(run.components)[WORD]
    assert list(moved) == NAMES[family]
    assert all(not torch.equal(row, old) for name in moved for row, old in zip(moved[name], words[name], strict=True))
    assert sum(not torch.equal(one, old) for one, old in zip(run.parameters, lora, strict=True)) > len(moved)
    assert not list(workspace.text_cache_dir.rglob("*.safetensors")), "what a word means now must not be kept"


def test_the_gradient_is_that_of_the_loss(bases: dict[str, Path], pictures: Path, workspace: Workspace) -> None:
    run = prepared(configured(bases["sdxl"], pictures), workspace)
    samples = run.plan.batch(0)
    window_losses(run, samples).sum().backward()
    torch.manual_seed(1)
    for table in tables_of(run.components):
        weight = table.added.weight
        direction = torch.randn_like(weight)
        slope = float((weight.grad * direction).sum())
        reach = 3e-3
        with torch.no_grad():
            weight += reach * direction
            above = float(window_losses(run, samples).sum())
            weight -= 2 * reach * direction
            below = float(window_losses(run, samples).sum())
            weight += reach * direction
        assert slope == pytest.approx((above - below) / (2 * reach), rel=0.05)
        assert abs(slope) > 1e-4


def test_without_pull_towards_zero_and_at_its_own_rate(
    bases: dict[str, Path], pictures: Path, workspace: Workspace
) -> None:
    run = prepared(configured(bases["sd15"], pictures, optimizer={"weight_decay": 0.5}), workspace)
    (group,) = [one for one in run.optimizer.param_groups if one["name"] == "embedding"]
    assert group["lr"] == 0.05 and group["weight_decay"] == 0.0
    assert all(one["weight_decay"] == 0.5 for one in run.optimizer.param_groups if one is not group)


@pytest.mark.parametrize(("family", "stop_step", "text_encoder"), [("sd15", 0, False), ("sdxl", 2, True)])
def test_an_interrupted_run_ends_like_one_that_was_not(
    bases: dict[str, Path], pictures: Path, tmp_path: Path, family: str, stop_step: int, text_encoder: bool
) -> None:
    config = configured(
        bases[family], pictures, embedding={"stop_step": stop_step}, lora={"train_text_encoder": text_encoder}
    )
    whole, halved = Workspace.open(tmp_path / "whole"), Workspace.open(tmp_path / "halved")
    expected = losses(trained(config, whole))
    folder, control = RunFolder.create(halved, config), Control()
    seen: list[events.Event] = []

    def emit(event: events.Event) -> None:
        seen.append(event)
        if isinstance(event, events.StepDone) and event.step == 3:
            control.stop.set()

    train(config, find_inputs(config, halved), folder, halved, emit, control)
    assert losses(seen) + losses(trained(config, halved, folder)) == expected
    first, second = final_state(only_run(whole)), final_state(folder)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert sum("token_embedding" in key for key in first) == len(NAMES[family])


def test_the_word_stops_at_its_step_and_the_lora_goes_on(
    bases: dict[str, Path], pictures: Path, workspace: Workspace
) -> None:
    run = prepared(configured(bases["sd15"], pictures, embedding={"stop_step": 2}), workspace)
    states = []
    for _ in range(4):
        train_step(run)
        lora = [one.detach().clone() for one in run.optimizer.param_groups[0]["params"]]
        states.append((trained_words(run.components)[WORD]["string_to_param.*"], lora))
    assert not torch.equal(states[0][0], states[1][0])
    assert torch.equal(states[1][0], states[2][0]) and torch.equal(states[2][0], states[3][0])
    assert any(not torch.equal(one, two) for one, two in zip(states[2][1], states[3][1], strict=True))


def test_samples_and_held_out_losses_hear_the_word_as_it_is_now(
    bases: dict[str, Path], pictures: Path, workspace: Workspace
) -> None:
    sample = {"prompts": [f"a {WORD}", "a red circle"], "width": 64, "height": 64, "num_inference_steps": 1}
    run = prepared(configured(bases["sdxl"], pictures, sample=sample), workspace)
    before = run.prompts.of_samples(run.config.sample)
    with torch.no_grad():
        tables_of(run.components)[0].added.weight += 0.5
    after = run.prompts.of_samples(run.config.sample)
    assert not same(before.prompts[0], after.prompts[0])
    assert same(before.prompts[1], after.prompts[1])


# ---- files ----


def a1111_vectors(data: dict[str, Tensor]) -> dict[str, Tensor]:
    """What A1111 1.10 makes of a file's tensors (modules/textual_inversion), written down apart from our writer."""
    if "clip_g" in data and "clip_l" in data:
        return {"clip_l": data["clip_l"].float(), "clip_g": data["clip_g"].float()}
    assert len(data) == 1
    (vector,) = data.values()
    return {"": vector if vector.ndim == 2 else vector[None]}


def a1111_bundle(data: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What A1111's LoRA reader (extensions-builtin/Lora/networks.py) collects as bundled embeddings."""
    bundles: dict[str, dict[str, Any]] = {}
    for key, weight in data.items():
        network, _, part = key.partition(".")
        if network == "bundle_emb":
            word, vector = part.split(".", 1)
            entry = bundles.setdefault(word, {})
            if vector.split(".")[0] == "string_to_param":
                entry["string_to_param"] = {vector.split(".", 1)[1]: weight}
            else:
                entry[vector] = weight
    return bundles


def comfyui_vectors(data: dict[str, Tensor], key: str) -> Tensor:
    """What ComfyUI (comfy/sd1_clip.py, load_embed) takes for the text encoder `key` from a file of its embeddings folder."""
    if key in data:
        return data[key]
    for end in (".string_to_param.*", f".{key}"):
        found = [one for name, one in data.items() if name.startswith("bundle_emb.") and name.endswith(end)]
        if found:
            return torch.cat(found)
    return next(iter(data.values()))


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_programs_read_what_was_trained(
    bases: dict[str, Path], pictures: Path, workspace: Workspace, family: str
) -> None:
    seen = trained(configured(bases[family], pictures, name=WORD), workspace)
    folder = only_run(workspace)
    saved = {event.path: event for event in seen if isinstance(event, events.LoraSaved)}
    assert set(saved) == {f"{WORD}.safetensors", f"{WORD}_diffusers.safetensors", f"embeddings/{WORD}.safetensors"}
    told = saved[f"{WORD}.safetensors"].loads_in
    assert not told["a1111"] and "words" in told["comfyui"] and "none of its tensors" in told["diffusers"]
    assert not saved[f"{WORD}_diffusers.safetensors"].loads_in["diffusers"]
    alone = saved[f"embeddings/{WORD}.safetensors"]
    assert alone.key_format == "embedding" and not alone.loads_in["a1111"] and not alone.loads_in["comfyui"]
    assert bool(alone.loads_in["diffusers"]) == (family == "sdxl")
    state = final_state(folder)
    vectors = [one for name, one in sorted(state.items()) if "token_embedding.added" in name]
    bundle = load_file(folder.path / f"{WORD}.safetensors")
    own = {key: one for key, one in bundle.items() if key.startswith("bundle_emb.")}
    assert list(own) == sorted(f"bundle_emb.{WORD}.{name}" for name in NAMES[family])
    assert not any("emb" in key for key in load_file(folder.path / f"{WORD}_diffusers.safetensors"))
    file = load_file(folder.path / f"embeddings/{WORD}.safetensors")
    for name, vector in zip(NAMES[family], vectors, strict=True):
        assert torch.equal(own[f"bundle_emb.{WORD}.{name}"], vector), "also where the LoRA is stored as fp16"
        key = name if family == "sdxl" else "clip_l"
        assert torch.equal(comfyui_vectors(file, key), vector)
        assert torch.equal(comfyui_vectors(bundle, key), vector)
        bundled = a1111_bundle(bundle)[WORD]
        assert torch.equal(bundled[name] if family == "sdxl" else bundled["string_to_param"]["*"], vector)
    read = a1111_vectors(file).values()
    assert all(torch.equal(one, two) for one, two in zip(read, vectors, strict=True))
    pipeline = get_family(family).pipeline_class()
    assert pipeline.lora_state_dict(bundle)[0].keys() == bundle.keys(), "diffusers leaves all of it as it is"
    with safe_open(folder.path / f"{WORD}.safetensors", "pt") as opened:
        assert WORD in opened.metadata()["modelspec.trigger_phrase"]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_diffusers_hears_the_same(bases: dict[str, Path], pictures: Path, workspace: Workspace, family: str) -> None:
    config = configured(bases[family], pictures)
    seen = trained(config, workspace)
    (path,) = (only_run(workspace).path / "embeddings").iterdir()
    run = prepared(config, workspace)
    restore(run, load_checkpoint(list_checkpoints(only_run_of(seen, workspace).checkpoints_dir)[-1]))
    plain = loaded(bases[family], family)
    pipeline = run.family.build_pipeline(plain, run.noise_schedule)
    if family == "sd15":
        pipeline.load_textual_inversion(str(path.parent), weight_name=path.name, local_files_only=True)
    else:
        state = load_file(path)
        pipeline.load_textual_inversion(state["clip_l"], token=WORD)
        pipeline.load_textual_inversion(
            state["clip_g"], token=WORD, text_encoder=pipeline.text_encoder_2, tokenizer=pipeline.tokenizer_2
        )
    prompt = f"a {WORD}, simple background"
    ours = encoded(run.components, family, prompt)
    with torch.no_grad():
        hidden = pipeline.encode_prompt(
            prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    assert torch.allclose(hidden[0], ours.hidden_states, atol=1e-5)
    assert not torch.allclose(
        hidden[0], encoded(loaded(bases[family], family), family, prompt).hidden_states, atol=1e-3
    )


def only_run_of(seen: list[events.Event], workspace: Workspace) -> RunFolder:
    return RunFolder(sorted(path for path in workspace.runs_dir.iterdir() if any(path.glob("*.safetensors")))[0])


def test_a_run_goes_on_from_a_file_with_its_word_and_never_without(
    bases: dict[str, Path], pictures: Path, workspace: Workspace
) -> None:
    config = configured(bases["sdxl"], pictures)
    trained(config, workspace)
    folder = only_run(workspace)
    lora = {"continue_from": str(folder.path / "tiny.safetensors")}
    run = prepared(configured(bases["sdxl"], pictures, lora=lora), workspace)
    expected = [one for name, one in sorted(final_state(folder).items()) if "added" in name]
    found = trained_words(run.components)[WORD]
    assert [torch.equal(one, two) for one, two in zip(found.values(), expected, strict=True)] == [True, True]
    for changes in ({"word": ""}, {"num_vectors": 3}):
        with pytest.raises(SafelightError, match=r"would be lost.*embedding\.word"):
            prepared(configured(bases["sdxl"], pictures, lora=lora, embedding=changes), workspace)


def test_words_of_a_lora_that_is_put_into_the_base_are_told_to_stay_behind(
    bases: dict[str, Path], pictures: Path, workspace: Workspace
) -> None:
    trained(configured(bases["sd15"], pictures, training={"max_train_steps": 1}), workspace)
    lora = {"merge_first": [f"0.5 {only_run(workspace).path / 'tiny.safetensors'}"]}
    config = configured(bases["sd15"], pictures, lora=lora, embedding={"word": ""})
    seen: list[events.Event] = []
    folder = RunFolder.create(workspace, config)
    prepare(config, find_inputs(config, workspace), folder, workspace, seen.append, Control())
    assert [event for event in seen if isinstance(event, events.Warned) and f"words {WORD}" in event.message]


def test_files_of_steps_are_named_and_forgotten_with_the_lora_of_that_step(
    bases: dict[str, Path], pictures: Path, workspace: Workspace
) -> None:
    config = configured(bases["sd15"], pictures, save={"every_n_steps": 1, "keep_last_loras": 1, "key_format": "kohya"})
    seen = trained(config, workspace)
    folder = only_run(workspace)
    left = sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*.safetensors"))
    left = [path for path in left if "checkpoints" not in path]
    assert left == [
        f"embeddings/{WORD}-step000003.safetensors",
        f"embeddings/{WORD}.safetensors",
        "tiny-step000003.safetensors",
        "tiny.safetensors",
    ]
    assert f"embeddings/{WORD}-step000001.safetensors" in [
        event.path for event in seen if isinstance(event, events.LoraRemoved)
    ]


def test_numbers_that_are_none_are_not_written(bases: dict[str, Path], tmp_path: Path) -> None:
    components = loaded(bases["sd15"], "sd15")
    add_word(components, EmbeddingConfig(word=WORD))
    with torch.no_grad():
        tables_of(components)[0].added.weight[0, 0] = float("nan")
    with pytest.raises(SafelightError, match="NaN"):
        save_word(components, tmp_path, "")
    assert not list(tmp_path.iterdir())


# ---- what is refused ----


def test_a_word_that_no_caption_holds_is_refused(bases: dict[str, Path], pictures: Path, workspace: Workspace) -> None:
    with pytest.raises(SafelightError, match=r"no caption holds it.*dataset\.trigger_word"):
        prepared(configured(bases["sd15"], pictures, dataset={"trigger_word": ""}), workspace)
    prefix = {"trigger_word": "", "caption_prefix": f"a picture by {WORD},"}
    assert tables_of(prepared(configured(bases["sd15"], pictures, dataset=prefix), workspace).components)


@pytest.mark.parametrize("word", ["two words", "a.b", "-x", "über", "x" * 65])
def test_words_that_no_file_or_key_can_have_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"embedding\.word"):
        parse_config({"embedding": {"word": word}})


def test_prodigy_wants_one_rate_for_the_word_too() -> None:
    with pytest.raises(ConfigError, match=r"embedding\.learning_rate"):
        parse_config({"embedding": {"word": WORD}, "optimizer": {"name": "prodigy", "learning_rate": 1.0}})


def test_rates_of_a_word_have_a_band_of_their_own() -> None:
    def told(rate: float, **optimizer: Any) -> list[str]:
        return learning_rate_warnings(
            parse_config({"embedding": {"word": WORD, "learning_rate": rate}, "optimizer": optimizer})
        )

    assert told(1e-3) == told(1e-2) == []
    assert "embedding.learning_rate is 0.5" in told(0.5)[0]
    assert told(1.0, name="prodigy", learning_rate=1.0) == []


def test_a_table_keeps_the_format_of_its_network(bases: dict[str, Path]) -> None:
    components = loaded(bases["sd15"], "sd15")
    components.text_encoders[0].to(torch.bfloat16)
    add_word(components, EmbeddingConfig(word=WORD))
    table = text_model(components.text_encoders[0]).embeddings.token_embedding
    assert isinstance(table, ExtendedTable) and table.added.weight.dtype == torch.float32
    assert components.text_encoders[0].dtype == torch.bfloat16
    assert encoded(components, "sd15", WORD).hidden_states.dtype == torch.bfloat16
