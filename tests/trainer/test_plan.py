"""The plan of a dataset is what training does: sizes, crops, turns, batches, for every kind of dataset in a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from security.errors import SafelightError
from tests.tiny import BUILDERS, as_single_file, model_files, tiny_dataset, tiny_sd15
from trainer.config.files import ConfigError, parse_config
from trainer.config.schema import DatasetConfig
from trainer.dataset.batches import BatchPlan, PlacedPicture
from trainer.dataset.buckets import bucket_sizes, choose_buckets, fit, place
from trainer.dataset.cache import load_pixels
from trainer.dataset.captions import training_caption, with_trigger
from trainer.dataset.placing import place_pictures
from trainer.dataset.plan import model_step, plan_dataset
from trainer.dataset.scan import Picture, scan_folder
from trainer.dataset.settings import DatasetSettings, Mark, marks_bytes, mask_path, settings_bytes
from trainer.dataset.sources import Role, Source, find_held_out, find_sources
from trainer.demo import BASE_DIR
from trainer.families import get_family
from trainer.families.bucket_steps import bucket_step_of
from trainer.inputs import find_inputs
from trainer.jobs import Control
from trainer.runs import RunFolder
from trainer.setup import prepare, steps_per_epoch
from trainer.workspace import Workspace

WIDE, SQUARE, TALL = (150, 81), (96, 96), (61, 140)


def own_files(folder: Path, settings: DatasetSettings | None = None, marks: dict[str, Mark] | None = None) -> Path:
    """Writes the files that a dataset has of its own."""
    own = folder / ".safelight"
    own.mkdir(parents=True, exist_ok=True)
    if settings is not None:
        (own / "dataset.json").write_bytes(settings_bytes(settings))
    if marks:
        (own / "marks.json").write_bytes(marks_bytes(marks) or b"")
    return folder


def mixed(folder: Path, seed: int = 0) -> Path:
    """Four square pictures, three wide ones seen three times, one tall one."""
    tiny_dataset(folder, 4, size=SQUARE, seed=seed)
    tiny_dataset(folder / "3_wide", 3, size=WIDE, seed=seed + 1)
    tiny_dataset(folder / "tall", 1, size=TALL, seed=seed + 2)
    return folder


def pictures(count: int, size: tuple[int, int] = SQUARE, repeats: int = 1, first: int = 0) -> list[Picture]:
    return [
        Picture(Path(f"{number}.png"), size, "", True, repeats, f"{number * 7919 % 1000:03d}" * 21, f"{number}.png")
        for number in range(first, first + count)
    ]


def cycle(placed: Sequence[PlacedPicture]) -> int:
    """After how many epochs every picture has been seen exactly as often as it should."""
    return math.lcm(*(one.looks.denominator for one in placed))


def source(role: Role = Role.TRAINING, weight: Fraction = Fraction(1)) -> Source:
    return Source("set", Path("set"), role, weight)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "space")


# ---- the plan is what training does ----

RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "joined": {"min_bucket_pictures": 2, "repeats": 2},
    "weighted": {"more": ["0.4 MORE"]},
    "regularised": {"more": ["1.5 MORE"], "regularisation": ["PRIOR"]},
    "split": {"more": ["1.5 MORE"], "split": 0.4},
    "sizes": {"more_resolutions": [64, 96], "regularisation": ["PRIOR"]},
    "sizes and crops": {"more_resolutions": [64], "random_crops": 3, "aspect_buckets": False, "more": ["0.5 MORE"]},
}


@pytest.mark.parametrize("name", RUNS)
def test_training_does_what_the_plan_says(name: str, base: Path, workspace: Workspace, tmp_path: Path) -> None:
    marks = {"001.png": Mark((0.1, 0.9), 1.5), "3_wide/000.png": Mark((1.0, 0.5))}
    folder = own_files(mixed(tmp_path / "set"), DatasetSettings(repeats={"tall": 4}), marks)
    places = {"MORE": str(mixed(tmp_path / "more", 10)), "PRIOR": str(tiny_dataset(tmp_path / "prior", 3, seed=20))}
    values: dict[str, Any] = {"folder": str(folder), "resolution": 128, **RUNS[name]}
    split = values.pop("split", 0.0)
    for key in ("more", "regularisation"):
        values[key] = [" ".join(places.get(word, word) for word in line.split()) for line in values.get(key, [])]
    config = parse_config(
        {
            "model": {"base": str(base), "precision": "fp32"},
            "dataset": values,
            "training": {"batch_size": 3, "gradient_accumulation_steps": 2, "device": "cpu"},
            "validation": {"split": split},
        }
    )
    plan = plan_dataset(workspace, config)
    run = prepare(
        config,
        find_inputs(config, workspace),
        RunFolder.create(workspace, config),
        workspace,
        lambda event: None,
        Control(),
    )
    assert list(plan.placed) == run.pictures.placed
    assert list(plan.held_out) == run.held_out.placed
    assert bool(plan.held_out) == (split > 0)
    assert plan.steps_per_epoch == steps_per_epoch(run)
    epochs = cycle(plan.placed)
    batches = [run.plan.batch(number) for number in range(round(plan.batches_per_epoch * epochs))]
    assert run.plan.epoch_of(len(batches) - 1) == epochs - 1 and run.plan.epoch_of(len(batches)) == epochs
    seen = Counter(sample.index for batch in batches for sample in batch)
    assert {index: Fraction(count, epochs) for index, count in seen.items()} == {
        index: one.looks for index, one in enumerate(plan.placed)
    }
    for row in plan.buckets:
        own = [batch for batch in batches if run.pictures.placed[batch[0].index].placement.bucket == row.size]
        assert len(own) == pytest.approx(row.batches * epochs)
        assert sum(map(len, own)) == pytest.approx(row.looks * epochs)
    assert [row.looks for row in plan.sources] == [
        pytest.approx(sum(count for index, count in seen.items() if plan.placed[index].source == number) / epochs)
        for number in range(len(plan.sources))
    ]
    latents = {key: value.shape[-2:] for key, value in run.pictures.latents.items()}
    assert latents == {
        (index, False): (one.placement.bucket[1] // 8, one.placement.bucket[0] // 8)
        for index, one in enumerate(plan.placed)
    }


def test_the_plan_tells_what_it_leaves_out_and_reads_no_model_for_a_given_step(
    workspace: Workspace, tmp_path: Path
) -> None:
    folder = mixed(tmp_path / "set")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    config = parse_config({"model": {"base": "nothing"}, "dataset": {"folder": str(folder), "resolution": 128}})
    plan = plan_dataset(workspace, config, 64)
    assert [name for name, _ in plan.sources[0].skipped] == ["broken.png"]
    assert plan.step == 64 and all(side % 64 == 0 for row in plan.buckets for side in row.size)
    assert set(plan.of_source(0)) == {one.picture.name for one in plan.placed} and len(plan.placed) == 8
    with pytest.raises(SafelightError, match="no model 'nothing'"):
        plan_dataset(workspace, config)
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = plan_dataset(workspace, parse_config({"dataset": {"folder": str(empty)}}), 64)
    assert nothing.buckets == () and nothing.steps_per_epoch == nothing.epochs == 0


@pytest.mark.parametrize("family_name", BUILDERS)
def test_the_step_read_from_files_is_the_families_own(family_name: str, tmp_path: Path) -> None:
    folder = BUILDERS[family_name](tmp_path / "model")
    family = get_family(family_name)
    for path in (folder, as_single_file(folder)):
        components = family.load(model_files(path, family_name), "cpu", __import__("torch").float32)
        assert bucket_step_of(path) == family.bucket_step(components) == 32


def test_the_step_of_the_embedded_base_and_of_what_is_no_model(workspace: Workspace, tmp_path: Path) -> None:
    assert model_step(workspace, "demo") == bucket_step_of(BASE_DIR) == 16
    (tmp_path / "unet").mkdir()
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "unet" / "config.json").write_text('{"block_out_channels": "many"}', encoding="utf-8")
    with pytest.raises(SafelightError, match="unet"):
        bucket_step_of(tmp_path)


# ---- turns: fractional weights, regularisation ----

FRACTIONS = st.builds(Fraction, st.integers(1, 300), st.just(100))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    weights=st.lists(FRACTIONS, min_size=3, max_size=3),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_turns_are_fair_and_a_batch_is_a_function_of_its_number(
    counts: list[int], weights: list[Fraction], batch_size: int, seed: int
) -> None:
    sizes = bucket_sizes(128, 32, 2.0)
    placed = [
        PlacedPicture(one, place(one.size, sizes), number, weight if number else Fraction(1))
        for number, (count, weight) in enumerate(zip(counts, weights, strict=False))
        for one in pictures(count, (SQUARE, WIDE)[number % 2], first=10 * number)
    ]
    plan = BatchPlan(placed, batch_size, seed)
    epochs = min(plan.period, 20)
    looks: Counter[int] = Counter()
    total = 0
    for epoch in range(epochs):
        batches = [plan.batch(total + number) for number in range(plan.num_batches(epoch))]
        total += len(batches)
        samples = [sample for batch in batches for sample in batch]
        assert len({sample.sample_id for sample in samples}) == len(samples)
        assert all(len({placed[sample.index].placement.bucket for sample in batch}) == 1 for batch in batches)
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        looks.update(sample.index for sample in samples)
        for index, one in enumerate(placed):  # nobody is ever more than one look away from what is due
            assert abs(looks[index] - one.looks * (epoch + 1)) < 1
    if epochs == plan.period:
        assert total == pytest.approx(plan.batches_per_epoch * epochs)
    backwards = BatchPlan(placed, batch_size, seed)
    numbers = [total - 1, 0, total // 2]
    assert [backwards.batch(number) for number in numbers] == [plan.batch(number) for number in numbers]


def test_half_a_weight_takes_turns_and_ends_even() -> None:
    sizes = bucket_sizes(128, 32, 2.0)
    placed = place_pictures(
        [(source(), pictures(3)), (source(weight=Fraction(1, 2)), pictures(4, first=10))], DatasetConfig(), 32
    )
    assert sizes
    plan = BatchPlan(placed, 1, seed=3)
    assert plan.period == 1 and plan.batches_per_epoch == 5  # two of the four in every epoch: always five batches
    epochs = [Counter(plan.batch(5 * epoch + number)[0].index for number in range(5)) for epoch in range(4)]
    assert [epoch[0] for epoch in epochs] == [1, 1, 1, 1]
    first, second = (set(epoch) - {0, 1, 2} for epoch in epochs[:2])
    assert len(first) == len(second) == 2 and not first & second and set(epochs[2]) - {0, 1, 2} == first


def test_the_same_picture_in_two_datasets_is_two_samples_and_the_first_keeps_its_old_name() -> None:
    placed = place_pictures([(source(), pictures(2)), (source(), pictures(2))], DatasetConfig(), 64)
    plan = BatchPlan(placed, 4, seed=1)
    names = {sample.sample_id for sample in plan.batch(0)}
    assert len(names) == 4 and {name.count(":") for name in names} == {1, 2}
    alone = BatchPlan(placed[:2], 2, seed=1)
    assert {sample.sample_id for sample in alone.batch(0)} < names


@pytest.mark.parametrize(("own", "prior"), [(7, 3), (3, 40), (5, 5)])
def test_the_prior_is_seen_as_often_as_the_pictures_that_are_learned(own: int, prior: int) -> None:
    regularisation = source(Role.REGULARISATION)
    scanned = [
        (source(), pictures(own, repeats=2)),
        (source(weight=Fraction(1, 2)), pictures(2, first=100)),
        (regularisation, pictures(prior, first=200)),
    ]
    placed = place_pictures(scanned, DatasetConfig(), 64)
    plan = BatchPlan(placed, 2, seed=1)
    epochs = cycle(placed)
    samples = [sample for number in range(round(plan.batches_per_epoch * epochs)) for sample in plan.batch(number)]
    looks = Counter(placed[sample.index].is_prior for sample in samples)
    assert looks[True] == looks[False] == (own * 2 + 1) * epochs
    each = Counter(sample.index for sample in samples if placed[sample.index].is_prior)
    assert len(each) == prior and max(each.values()) - min(each.values()) <= 1


# ---- buckets and crops ----


def test_lone_pictures_move_to_the_nearest_size_that_has_company() -> None:
    sizes = bucket_sizes(512, 64, 2.0)
    originals = [(512, 512)] * 5 + [(600, 500)] + [(1000, 500)] * 3 + [(500, 900)]
    alone = choose_buckets(originals, sizes, 1)
    assert alone == [place(original, sizes).bucket for original in originals]
    assert min(Counter(alone).values()) == 1
    joined = choose_buckets(originals, sizes, 2)
    assert min(Counter(joined).values()) >= 2
    assert joined[5] == (512, 512) and joined[9] == (512, 512) and joined[6:9] == alone[6:9]
    assert set(choose_buckets(originals, sizes, 11)) == {(512, 512)}
    assert choose_buckets([], sizes, 2) == []


SIDES = st.integers(32, 5000)
SHARES = st.floats(0, 1, allow_nan=False)


@settings(max_examples=300, deadline=None)
@given(width=SIDES, height=SIDES, focus=st.tuples(SHARES, SHARES), zoom=st.floats(1, 64))
def test_a_crop_stays_inside_the_picture_and_as_near_to_its_focus_as_it_can(
    width: int, height: int, focus: tuple[float, float], zoom: float
) -> None:
    sizes = bucket_sizes(512, 64, 2.0)
    middle, chosen = place((width, height), sizes), place((width, height), sizes, focus, zoom)
    assert chosen.bucket == middle.bucket
    left, top, share_across, share_down = chosen.frame
    assert left >= 0 and top >= 0 and left + share_across <= 1 + 1e-9 and top + share_down <= 1 + 1e-9
    assert share_across <= middle.frame[2] + 1e-9 and share_down <= middle.frame[3] + 1e-9
    for begin, share, wanted, resized in zip(
        (left, top), (share_across, share_down), focus, chosen.resized, strict=True
    ):
        nearest = min(max(wanted, share / 2), 1 - share / 2)
        assert abs(begin + share / 2 - nearest) <= 1 / resized
    assert fit((width, height), middle.bucket) == middle
    assert chosen.mirrored().mirrored() == chosen


def test_a_chosen_crop_shows_its_part_of_the_picture(tmp_path: Path) -> None:
    numbers = np.zeros((200, 300, 3), dtype=np.uint8)
    numbers[:, :, 0] = np.linspace(0, 255, 300, dtype=np.uint8)[None, :]
    numbers[:, :, 1] = np.linspace(0, 255, 200, dtype=np.uint8)[:, None]
    Image.fromarray(numbers).save(tmp_path / "a.png")
    for mark in (Mark((0.9, 0.2), 2.5), Mark((0.0, 0.5)), Mark((0.3, 0.6), 1.01)):
        placement = fit((300, 200), (64, 64), mark.focus, mark.zoom)
        pixels = load_pixels(tmp_path / "a.png", placement, flip=False)
        left, top, across, down = placement.frame
        shown = (pixels[0].mean(dim=(1, 2)) + 1) / 2
        assert shown[0].item() == pytest.approx(left + across / 2, abs=0.01)
        assert shown[1].item() == pytest.approx(top + down / 2, abs=0.01)
        flipped = load_pixels(tmp_path / "a.png", placement, flip=True)
        assert (flipped.flip(-1) == pixels).all()


def test_zooming_scales_only_what_is_shown_and_gives_the_same_pixels(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    placement = fit((120, 90), (64, 64), (0.4, 0.6), 1.6)
    whole = Image.open(tmp_path / "a.png").resize(placement.resized, Image.Resampling.LANCZOS)
    box = (placement.left, placement.top, placement.left + 64, placement.top + 64)
    expected = np.asarray(whole.crop(box), dtype=np.float32) / 127.5 - 1
    found = load_pixels(tmp_path / "a.png", placement, flip=False)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 2 / 127.5
    enormous = fit((120, 90), (2048, 2048), (0.4, 0.6), 64.0)
    assert enormous.resized[0] > 100_000
    assert load_pixels(tmp_path / "a.png", enormous, flip=False).shape == (1, 3, 2048, 2048)


# ---- what a dataset says of itself ----


def test_repeats_of_the_dataset_beat_those_of_the_folders_name(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "set")
    tiny_dataset(folder / "tall" / "5_deep", 1)
    own_files(folder, DatasetSettings(repeats={"": 7, "3_wide": 2}))
    scan = scan_folder(folder, DatasetConfig(repeats=9))
    repeats = {picture.name.rpartition("/")[0]: picture.repeats for picture in scan.pictures}
    assert repeats == {"": 7, "3_wide": 2, "tall": 9, "tall/5_deep": 5}


def test_each_dataset_has_its_trigger_word_and_the_prior_has_none(workspace: Workspace, tmp_path: Path) -> None:
    for name, word in (("one", "mira"), ("two", "hat_x"), ("three", ""), ("prior", "never"), ("held", "other")):
        own_files(tiny_dataset(tmp_path / name, 1), DatasetSettings(trigger_word=word))
    names = [str(tmp_path / name) for name in ("one", "two", "three", "prior", "held")]
    values = {"folder": names[0], "more": [f"1 {names[1]}", f"0.25 {names[2]}"], "regularisation": [names[3]]}

    def words(**more: Any) -> list[str]:
        found = find_sources(workspace, DatasetConfig(**values, **more))
        return [
            scan_folder(one.folder, DatasetConfig(), trigger_word=one.trigger_word).pictures[0].caption.split(",")[0]
            for one in found
        ]

    plain = "red circle"
    assert words() == ["mira", "hat_x", plain, plain]
    assert words(trigger_word="zoe") == ["zoe", "hat_x", "zoe", plain]
    held_out = find_held_out(workspace, names[4], "mira")
    assert held_out is not None and held_out.trigger_word == "mira" and held_out.role is Role.HELD_OUT
    weights = [one.weight for one in find_sources(workspace, DatasetConfig(**values))]
    assert weights == [1, 1, Fraction(1, 4), 1]


def test_the_trigger_word_stays_first_when_tags_are_shuffled() -> None:
    caption = "1girl, hat, mira smiling, rain, night, garden"
    for keep, kept in ((0, ["mira smiling"]), (1, ["mira smiling"]), (2, ["mira smiling", "1girl"])):
        shuffled = DatasetConfig(shuffle_tags=True, keep_tokens=keep)
        texts = [training_caption(caption, shuffled, 1, step, "a", "mira").split(", ") for step in range(30)]
        assert all(text[: len(kept)] == kept and sorted(text) == sorted(caption.split(", ")) for text in texts)
        assert len({tuple(text) for text in texts}) > 10
    without = [training_caption(caption, DatasetConfig(shuffle_tags=True), 1, step, "a") for step in range(30)]
    assert len({text.split(", ")[0] for text in without}) > 1
    assert with_trigger("miracle worker", "mira") == "mira, miracle worker"
    assert with_trigger("mira, hat", "mira") == "mira, hat" and with_trigger("a mira-like", "a") == "a mira-like"


def test_a_mask_that_does_not_fit_leaves_its_picture_out_in_words(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set", 2)
    mask = mask_path(folder, "000.png")
    mask.parent.mkdir(parents=True)
    Image.new("L", (10, 10), 255).save(mask)
    scan = scan_folder(folder, DatasetConfig(), use_masks=True)
    assert [picture.name for picture in scan.pictures] == ["001.png"]
    assert "mask has 10x10 pixels and the picture 96x96" in dict(scan.skipped)["000.png"]
    assert len(scan_folder(folder, DatasetConfig()).pictures) == 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"more": ["faces"]}, 'dataset.more is "faces"'),
        ({"more": ["1.555 faces"]}, "dataset.more"),
        ({"more": ["-1 faces"]}, "dataset.more"),
        ({"more": ["1e3 faces"]}, "dataset.more"),
        ({"more": ["0.0 faces"]}, "faces the weight 0"),
        ({"more": ["1 ink"]}, "names ink a second time"),
        ({"more": ["1 faces", "2 faces"]}, "names faces a second time"),
        ({"more": ["1 faces"], "regularisation": ["faces"]}, "faces, which is also trained on"),
        ({"regularisation": ["a", "a"]}, "names a more than once"),
        ({"min_bucket_pictures": 0}, "dataset.min_bucket_pictures is 0"),
    ],
)
def test_datasets_that_make_no_sense_are_refused_with_the_way_out(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config({"dataset": values})
