"""Every setting of a run, once: type, range, default and a one-sentence help text, by group.

The page's form, the command line flags, the commented TOML file and the documentation are all made from these models.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from trainer.config.choices import (
    AdapterInit,
    AdapterName,
    BaseFormat,
    Checkpointing,
    HuberSchedule,
    KeyFormat,
    LoraTargets,
    LossType,
    Offload,
    OptimizerName,
    OutOfMemory,
    Precision,
    PredictionType,
    SavePrecision,
    ScheduleName,
    Switch,
    TimestepLaw,
)


class Section(BaseModel):
    """A group of settings: frozen, unknown keys refused, help text taken from the docstring under each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


WEIGHTED_DATASET = r"^(0|[1-9][0-9]{0,3})([.][0-9]{1,2})? +[^ ].*$"
"""`0.5 faces`: a weight with at most two decimals, so that turns come round, and a dataset."""
MAX_RANK = 256
BLOCK_RANK = r"^\S+ +(0|[1-9][0-9]{0,2})( +[0-9]{1,4}([.][0-9]{1,4})?)?$"
"""`down_blocks.1 8 4`: a pattern, a rank and perhaps an alpha."""
BLOCK_RATE = r"^\S+ +[0-9]{1,3}([.][0-9]{1,6})?$"
"""`up_blocks 0.5`: a pattern and a factor on the learning rate."""
WEIGHTED_LORA = r"^-?[0-9]{1,2}([.][0-9]{1,4})? +[^ ].*$"
"""`0.8 style.safetensors`: how strongly, and the file."""


class ModelConfig(Section):
    """The base model that the LoRA is trained on."""

    base: Annotated[str, Field(min_length=1, max_length=1024)] = "demo"
    """Name of a model in the library, or the path of a diffusers folder or .safetensors file; `demo` is the embedded one."""
    prediction_type: PredictionType = PredictionType.AUTO
    """What the base predicts: noise (epsilon) or velocity (v_prediction); a wrong choice ruins the result, so leave it on auto."""
    zero_terminal_snr: Switch = Switch.AUTO
    """Noise schedule that ends in pure noise; only for v-prediction bases that were trained with it."""
    precision: Precision = Precision.AUTO
    """Number format of the frozen base: bf16 and fp16 halve the memory, fp32 is exact; auto takes bf16 on a GPU that has it, else fp32."""
    clip_skip: Annotated[int, Field(ge=1, le=4)] = 1
    """Which text encoder layer to read, counted from the end: 2 for many anime SD 1.x models; SDXL always reads the one before the last."""


class DatasetConfig(Section):
    """The pictures and captions to learn from."""

    folder: Annotated[str, Field(min_length=1, max_length=1024)] = "ink"
    """Name of a dataset in the library, or the path of a folder with pictures; `ink` is the embedded one."""
    more: tuple[Annotated[str, Field(pattern=WEIGHTED_DATASET, max_length=1024)], ...] = ()
    """More datasets for the same run, one per line as `WEIGHT NAME`: `0.5 faces` shows each of its pictures half as often per epoch."""
    regularisation: tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...] = ()
    """Datasets of what the model should not forget, one per line: shown as often as all training pictures together, without trigger word."""
    resolution: Annotated[int, Field(ge=64, le=4096)] = 512
    """Side in pixels of the square whose area every training picture gets; more detail needs more memory and time."""
    more_resolutions: tuple[Annotated[int, Field(ge=64, le=4096)], ...] = ()
    """Further sizes as dataset.resolution, one per line: every picture that need not be enlarged for it is trained at that size too."""
    aspect_buckets: bool = True
    """Keep each picture's shape by grouping pictures of like aspect; off crops everything to a square."""
    max_aspect_ratio: Annotated[float, Field(ge=1.0, le=8.0)] = 2.0
    """Widest shape a bucket may have; pictures beyond it are cropped to it."""
    min_bucket_pictures: Annotated[int, Field(ge=1, le=1000)] = 1
    """Fewest pictures that a bucket may have; those of an emptier one go to the nearest other shape and are cropped a little more."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often each picture is seen per epoch; a folder named `10_name`, or the dataset itself, sets it for its own pictures."""
    caption_extension: Annotated[str, Field(pattern=r"^\.[A-Za-z0-9]{1,16}$")] = ".txt"
    """Ending of the caption file beside each picture."""
    trigger_word: Annotated[str, Field(max_length=200)] = ""
    """Word put in front of every caption that does not hold it yet, so that a prompt can call up the LoRA; empty takes the dataset's own."""
    shuffle_tags: bool = False
    """Shuffle the comma-separated parts of a caption at every step, so that their order is not learned; the trigger word stays first."""
    keep_tokens: Annotated[int, Field(ge=0, le=64)] = 0
    """How many leading comma-separated parts stay in place when shuffling; a trigger word comes first and counts among them."""
    keep_tokens_separator: Annotated[str, Field(pattern=r"^[^,\s{}]*$", max_length=16)] = ""
    """Mark such as ||| in captions: what stands before the first one stays in front, what stands after a second one at the end."""
    tag_dropout_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of a caption's comma-separated parts left out at every step, but for those that stay in place, so that none is needed."""
    caption_prefix: Annotated[str, Field(max_length=1000)] = ""
    """Text in front of every caption, before the trigger word; never shuffled."""
    caption_suffix: Annotated[str, Field(max_length=1000)] = ""
    """Text after every caption; never shuffled."""
    wildcards: bool = False
    """Choose anew at every step: one of several lines of a caption file, and one of {a|b} in a caption."""
    caption_dropout_rate: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of steps in which a picture is shown without its caption; a little (0.05) keeps guidance strong."""
    max_token_length: Annotated[int, Field(ge=75, le=225, multiple_of=75)] = 75
    """Longest caption in tokens; longer ones are read in pieces of 75 and cut, with a warning, beyond this."""
    flip_augmentation: bool = False
    """Show pictures mirrored half of the time; not for faces with a side, text or asymmetric characters."""
    random_crops: Annotated[int, Field(ge=0, le=16)] = 0
    """Cut each picture at so many places instead of the middle, and take them in turn; a crop chosen by hand stays."""
    cache_latents: bool = True
    """Keep encoded pictures on disk by content, so that the next run starts at once."""


class LoraConfig(Section):
    """The adapter that is trained."""

    adapter: AdapterName = AdapterName.LORA
    """Kind of adapter: lora suits nearly everything, locon adds the convolutions, the others trade time for size or gentleness."""
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)] = 16
    """Rank (dimension) of the adapter's matrices; higher learns more and makes a larger file."""
    alpha: Annotated[float, Field(gt=0.0, le=1024.0)] = 16.0
    """Scale of the adapter: its effect is multiplied by alpha / rank, so half the alpha halves the step size."""
    rs_lora: bool = False
    """Multiply by alpha / root of the rank instead (rs-LoRA), so that high ranks learn as strongly as low ones."""
    init: AdapterInit = AdapterInit.DEFAULT
    """Where the matrices begin: pissa starts from the base's own main directions and learns faster, its file has twice the rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the adapter's inputs dropped at random in each step; a little works against overfitting."""
    rank_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the ranks left out at random in each step (loha and lokr: of the outputs, oft and boft: of the blocks)."""
    module_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the layers whose adapter is left out as a whole, at random in each step."""
    conv_rank: Annotated[int, Field(ge=0, le=MAX_RANK)] = 0
    """Rank of the convolutions larger than 1x1; 0 leaves them alone, but locon and targets all take the rank then."""
    conv_alpha: Annotated[float, Field(ge=0.0, le=1024.0)] = 0.0
    """Alpha of the convolutions larger than 1x1; 0 takes alpha."""
    lokr_factor: Annotated[int, Field(ge=-1, le=64)] = -1
    """Size of lokr's small matrix: less makes a larger file that learns more, -1 cuts each layer as evenly as it goes."""
    block_size: Annotated[int, Field(ge=2, le=256)] = 32
    """Outputs that oft and boft turn together; larger learns more, and each layer takes the nearest smaller size that fits it."""
    targets: LoraTargets = LoraTargets.ATTENTION_FEED_FORWARD_PROJECTION
    """Layers of the denoiser that get an adapter; attention alone is smaller and gentler, all adds time embedding and convolutions."""
    target_patterns: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    """Regular expressions, one per line, that choose the denoiser's layers by name in place of targets, such as `up_blocks.1.*attn2`."""
    exclude_patterns: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    """Regular expressions, one per line: layers with such a name get no adapter; a text encoder's names begin with text_encoder."""
    block_ranks: tuple[Annotated[str, Field(pattern=BLOCK_RANK, max_length=240)], ...] = ()
    """Lines `PATTERN RANK [ALPHA]`, such as `down_blocks.1 8`: the first that matches a layer's name counts, rank 0 leaves it out."""
    block_learning_rates: tuple[Annotated[str, Field(pattern=BLOCK_RATE, max_length=240)], ...] = ()
    """Lines `PATTERN FACTOR`, such as `up_blocks 0.5`: the first that matches a layer's name multiplies its rate, 0 freezes it."""
    train_denoiser: bool = True
    """Train an adapter on the denoiser; off trains the text encoder alone."""
    train_text_encoder: bool = False
    """Also train an adapter on the text encoder; helps new words, costs time and overfits sooner."""
    text_encoder_stop_step: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Step after which the text encoder's adapter no longer moves; 0 lets it learn to the end."""
    continue_from: Annotated[str, Field(max_length=1024)] = ""
    """LoRA to go on from: the name of a run, of a file among the LoRAs, or a path; empty begins anew."""
    merge_first: tuple[Annotated[str, Field(pattern=WEIGHTED_LORA, max_length=1024)], ...] = ()
    """LoRAs put into the base before training, one per line as `WEIGHT FILE`; what is trained then belongs on top of them."""


class EmbeddingConfig(Section):
    """A word of your own, learned as new vectors of the text encoders beside the LoRA."""

    word: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,63})?$")] = ""
    """Word to learn, as it stands in the captions; the LoRA file brings it along, and a file of its own has it too. Empty learns none."""
    num_vectors: Annotated[int, Field(ge=1, le=32)] = 1
    """How many tokens the word takes: more holds more, needs more pictures and leaves less room in the prompt."""
    init_words: Annotated[str, Field(max_length=200)] = ""
    """What the word begins as, such as `woman` or `oil painting`; empty begins as the model reads the word now."""
    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 1e-3
    """Step size of the word's vectors; usual is five to ten times that of the LoRA."""
    stop_step: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Step after which the word no longer moves while the LoRA learns on; 0 lets it learn to the end."""


class OptimizerConfig(Section):
    """How the LoRA's weights move."""

    name: OptimizerName = OptimizerName.ADAMW
    """How gradients become steps: adamw is the usual choice, adamw_8bit and adafactor need less memory, prodigy finds the step size by itself."""
    learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 1e-4
    """Step size; too high destroys the picture or the loss, too low learns nothing."""
    text_encoder_learning_rate: Annotated[float, Field(gt=0.0, le=10.0)] = 5e-5
    """Step size of the text encoder's LoRA; keep it at or below the learning rate. Only used with lora.train_text_encoder."""
    lora_plus_ratio: Annotated[float, Field(ge=1.0, le=64.0)] = 1.0
    """How many times faster a LoRA's up matrices learn than its down matrices (LoRA+, 16 is usual); 1 switches it off."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """How long the optimizer remembers the direction of past steps."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """How long the optimizer remembers the size of past gradients; lion wants 0.99."""
    beta3: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9999
    """How long came remembers how much its past steps could be trusted."""
    epsilon: Annotated[float, Field(gt=0.0, le=1e-2)] = 1e-8
    """Small number that keeps the optimizer's division stable."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 1e-2
    """Pull of the weights towards zero; more works against overfitting."""
    d_coefficient: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    """Factor on the step size that prodigy finds: 2 learns faster, 0.5 is more careful."""
    schedule: ScheduleName = ScheduleName.CONSTANT
    """Shape of the learning rate over the run."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Steps in which the learning rate rises from zero; steadies the start."""
    min_learning_rate_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Floor of a falling schedule as a share of the learning rate; no effect on the constant schedule."""
    num_cycles: Annotated[int, Field(ge=1, le=100)] = 1
    """How often the cosine_with_restarts schedule starts again."""
    power: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """Exponent of the polynomial schedule; 1 falls in a straight line, 2 falls fast and then slowly."""


class TrainingConfig(Section):
    """Length and batch of the run."""

    max_train_steps: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Number of optimizer steps; each one looks at batch_size x gradient_accumulation_steps pictures."""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 1
    """Pictures per forward pass; more is smoother and needs more memory."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=1024)] = 1
    """Forward passes that are added up before one optimizer step; smooths like a larger batch at no memory cost."""
    num_processes: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs of this machine that train together, or processes on the CPU. They share the pictures of each step: the run is shorter, and learns the same."""
    shard_base: bool = False
    """Keep a part of the base on each GPU, for bases that do not fit on one; slower, since every block is brought together to compute."""
    max_grad_norm: Annotated[float, Field(ge=0.0, le=1000.0)] = 1.0
    """Longest gradient allowed, longer ones are shortened to it; 0 switches clipping off."""
    max_weight_norm: Annotated[float, Field(ge=0.0, le=1000.0)] = 0.0
    """Furthest that each layer may be changed (1 is usual), which keeps a LoRA from overpowering others; 0 sets no limit."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Start of all randomness; the same seed and settings give the same LoRA on the same machine."""
    spike_factor: Annotated[float, Field(ge=0.0, le=1000.0)] = 20.0
    """Warn of a step whose loss is so many times the usual one (the median of the last 100 steps), with its pictures; 0 never warns."""
    skip_spikes: bool = False
    """Leave such steps out, so that a broken picture can't spoil the LoRA; needs training.spike_factor."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,2})?)$")] = "auto"
    """Where to compute: auto takes the first GPU, else the CPU."""


class MemoryConfig(Section):
    """How a run does with the memory that there is."""

    base_format: BaseFormat = BaseFormat.WHOLE
    """How the frozen base is kept: whole in model.precision; fp8 and int8 halve a 16-bit base and nf4 quarters it, for some accuracy and speed."""
    checkpointing: Checkpointing = Checkpointing.AUTO
    """What is computed twice instead of being remembered: attention the transformers, blocks all; much less memory, up to a third slower. Auto: as little as fits."""
    offload: Offload = Offload.AUTO
    """What waits in the machine's memory instead of the GPU's: activations, the base's blocks, or both; slower. Auto: only what does not fit."""
    on_out_of_memory: OutOfMemory = OutOfMemory.LOWER
    """When the memory is too small for a step: lower takes the same step again with less memory and says so, fail ends the run."""


class SpeedConfig(Section):
    """Faster ways to the same LoRA. Each can be switched off, to compare or to rule it out as a cause."""

    fused_lora: bool = True
    """Compute a linear layer and its LoRA as one operation, forwards and backwards."""
    fused_optimizer: bool = True
    """Move all weights in one operation instead of one after the other. AdamW only."""
    packed_weights: Switch = Switch.AUTO
    """On a CPU, keep the frozen weights as its kernels want them: up to a third faster, and twice the memory for the base. Auto: where it pays and fits."""
    caching_batch_size: Annotated[int, Field(ge=1, le=64)] = 1
    """Pictures or captions that are encoded at once while a run starts: more can be faster on a GPU, is slower on a CPU, and changes the last bits of what is encoded."""
    mapped_latents: Switch = Switch.AUTO
    """Read encoded pictures from the cache at each step instead of holding all of them in memory. Auto: where they need more than an eighth of it."""
    late_metrics: Switch = Switch.AUTO
    """Read a step's loss and gradient after the next step was begun, so that a GPU never waits for the program. AdamW only. Auto: on a GPU."""
    prefetch: Switch = Switch.AUTO
    """Make the inputs of the next step while this one is computed. Auto: on a GPU, since on a CPU it takes the step's own processors."""
    channels_last: Switch = Switch.AUTO
    """Keep the weights of frozen convolutions in the order that a GPU's tensor cores want. Auto: on a GPU in 16 bits."""
    compile: Switch = Switch.AUTO
    """Let torch compile the blocks of the denoiser before the first step, which takes minutes and makes steps faster. Not in the sandbox. Auto: long runs on a GPU."""
    background_saving: bool = True
    """Write checkpoints to the disk while the training goes on; takes memory for one more copy of the LoRA and the optimizer's state."""


class LossConfig(Section):
    """What counts as an error, and how much."""

    type: LossType = LossType.L2
    """How an error counts: l2 squares it, l1 takes its size, huber and smooth_l1 square small errors only, so that damaged pictures do less harm."""
    huber_delta: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Error above which huber and smooth_l1 no longer square; less is more forgiving. With a schedule, where there is only noise."""
    huber_schedule: HuberSchedule = HuberSchedule.SNR
    """How huber_delta grows from pure noise to a clean picture, where it is 1, so that details stay sharp: constant does not."""
    min_snr_gamma: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Weighs down nearly clean timesteps (Min-SNR, gamma 5 is usual) so that training is faster and steadier; 0 switches it off."""
    debiased_estimation: bool = False
    """Weighs each timestep by one over the root of its signal-to-noise ratio, so that composition and colour count more than grain."""
    use_masks: bool = True
    """Learn only what is white in the masks of a dataset; pictures without a mask are learned whole."""
    unmasked_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """How much the black part of a mask counts all the same; a little keeps backgrounds sound, 0 ignores it."""
    prior_loss_weight: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    """How much a regularisation picture's error counts beside a training picture's; less learns faster and forgets more."""


class NoiseConfig(Section):
    """What the pictures are noised with, and how much."""

    offset: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Adds a constant shift to the noise so that very dark and very bright pictures can be learned (0.05 to 0.1); 0 switches it off."""
    offset_random_strength: bool = False
    """Draw the strength of the offset anew for each sample, between nothing and noise.offset; gentler than a fixed one."""
    adaptive_offset: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.0
    """Adds this much of a picture's own mean brightness in latents to its offset (0.01 is usual), or takes it away; 0 switches it off."""
    pyramid_iterations: Annotated[int, Field(ge=0, le=10)] = 0
    """Coarser layers added to the noise (pyramid or multi-resolution noise, 6 to 10) so that large shapes and brightness are learned; 0 switches it off."""
    pyramid_discount: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """How much weaker each coarser layer is than the one before: 0.1 to 0.3 is gentle, 0.8 strong."""
    input_perturbation: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Extra noise that the model sees but is not asked for (0.1 is usual), against errors that add up while drawing; 0 switches it off."""
    timestep_law: TimestepLaw = TimestepLaw.UNIFORM
    """Which amounts of noise are trained most: uniform all alike, sigmoid the middle, logit_normal around timestep_mean."""
    timestep_mean: Annotated[float, Field(ge=-5.0, le=5.0)] = 0.0
    """Centre of logit_normal: 0 is half noise, above it composition is trained more, below it details."""
    timestep_scale: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """Width of logit_normal and sigmoid: less keeps to the centre, from 2 on both ends are trained most."""
    min_timestep: Annotated[int, Field(ge=0, le=999)] = 0
    """Least noise that is trained: 0 is a clean picture, 1000 only noise; raise it to leave details as they are."""
    max_timestep: Annotated[int, Field(ge=1, le=1000)] = 1000
    """Timesteps from this one on are not trained; lower it to learn details only and leave composition as it is."""


class SampleConfig(Section):
    """Pictures drawn before, during and after training with fixed seeds."""

    prompts: tuple[Annotated[str, Field(min_length=1, max_length=2000)], ...] = ()
    """One prompt per line; each is drawn with the same seed every time, so that only the LoRA changes."""
    negative_prompt: Annotated[str, Field(max_length=2000)] = ""
    """What the samples should not show."""
    every_n_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Draw the samples every this many steps, besides before and after; 0 draws only before and after."""
    num_inference_steps: Annotated[int, Field(ge=1, le=200)] = 20
    """Denoising steps per sample; more is finer and slower."""
    guidance_scale: Annotated[float, Field(ge=1.0, le=30.0)] = 7.0
    """How strictly samples follow the prompt."""
    width: Annotated[int, Field(ge=64, le=4096, multiple_of=8)] = 512
    """Width of the samples in pixels."""
    height: Annotated[int, Field(ge=64, le=4096, multiple_of=8)] = 512
    """Height of the samples in pixels."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 1
    """Seed of the first sample; the others count up from it."""


class ValidationConfig(Section):
    """Loss on pictures that are never trained on."""

    folder: Annotated[str, Field(max_length=1024)] = ""
    """Dataset name or folder with held-out pictures; empty takes those of validation.split, if any."""
    split: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Share of the training pictures held out to measure the loss on, never with a near-duplicate left in training; 0 holds out none."""
    every_n_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Measure the held-out loss every this many steps, besides before and after; 0 measures only before and after."""
    num_timesteps: Annotated[int, Field(ge=1, le=100)] = 8
    """Noise levels at which each held-out picture is measured; more is steadier and slower."""
    train_pictures: Annotated[int, Field(ge=0, le=10_000)] = 8
    """So many training pictures are measured in the same way, to show the gap to the held-out ones; 0 measures none."""
    keep_best: bool = True
    """Keep the LoRA and the checkpoint with the lowest held-out loss, whatever comes after."""
    early_stop_patience: Annotated[int, Field(ge=0, le=10_000)] = 0
    """End the run after this many measurements in a row without a gain on the held-out pictures; 0 never ends it early."""
    early_stop_delta: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """Smallest gain that counts for early_stop_patience, as a share of the held-out loss: 0.01 asks for one percent."""


class SaveConfig(Section):
    """Checkpoints and the exported file."""

    every_n_steps: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Write a checkpoint and a LoRA file every this many steps; 0 writes them only at the end or on stop."""
    keep_last: Annotated[int, Field(ge=1, le=1000)] = 3
    """How many checkpoints to keep; older ones are deleted, their LoRA files stay."""
    keep_last_loras: Annotated[int, Field(ge=0, le=1000)] = 0
    """How many LoRA files of single steps to keep, newest first; 0 keeps all of them, and the last and the best one always stay."""
    rescue_minutes: Annotated[float, Field(ge=0.0, le=1440.0)] = 10.0
    """Write a checkpoint at least so often, without a LoRA file, so that a crash costs no more than these minutes; 0 writes none."""
    precision: SavePrecision = SavePrecision.FP16
    """Number format of the exported LoRA; fp16 loads everywhere and is half the size of fp32."""
    key_format: KeyFormat = KeyFormat.BOTH
    """Key names of the exported LoRA: kohya for ComfyUI, A1111 and most tools, diffusers for diffusers and peft, or both files."""
    save_captions: bool = False
    """Store how often each tag occurs in the LoRA's metadata; leave off to keep captions private."""


def weighted_dataset(line: str) -> tuple[Fraction, str]:
    """Weight and name of a line of dataset.more."""
    weight, _, name = line.partition(" ")
    return Fraction(weight), name.strip()


def block_rank(line: str) -> tuple[str, int, float | None]:
    """Pattern, rank and alpha (None: the general one) of a line of lora.block_ranks."""
    pattern, rank, *alpha = line.split()
    return pattern, int(rank), float(alpha[0]) if alpha else None


def block_rate(line: str) -> tuple[str, float]:
    """Pattern and factor of a line of lora.block_learning_rates."""
    pattern, factor = line.split()
    return pattern, float(factor)


def weighted_lora(line: str) -> tuple[float, str]:
    """Weight and file of a line of lora.merge_first."""
    weight, _, name = line.partition(" ")
    return float(weight), name.strip()
