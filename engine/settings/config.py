"""RunConfig: every setting of a run, defined here and nowhere else.

The command line, the wizard's form, the profile files, ``run.json`` and the table in the documentation are all made
from this model. The planner chooses a value for each field that is ``None``; it never changes a value that was set.

This file knows nothing of torch, folders or memory: the planner decides whether a setting *fits*.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)

from engine.errors import Problem, SettingsError
from engine.machine.device import NAMES, is_name
from engine.settings.describe import (
    MOST,
    SettingInfo,
    describe,
    parse_bytes,
    parse_layers,
    plain_path,
    plain_text,
    setting,
    suggestion,
)

GROUPS: dict[str, str] = {
    "models": "Models",
    "data": "Data",
    "distillation": "Distillation",
    "training": "Training",
    "memory": "Memory and speed",
    "run": "Run folder",
    "command": "Command",
}

UNDIVIDED = (
    "is for a student whose weights are all trained; an adapter is small, so each process has all of it, and "
    "--student_layer_by_layer keeps the student's own weights on the disk: leave this out"
)
OF_AN_ADAPTER = ("lora_alpha", "lora_targets", "student_quantization", "student_layer_by_layer")
"""Settings that ask for an adapter, beside its rank."""

Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Text = Annotated[str, BeforeValidator(plain_text)]
Source = Annotated[str, BeforeValidator(plain_path)]
Layers = Annotated[int | str, BeforeValidator(parse_layers)]
Folder = Annotated[Path, BeforeValidator(plain_path)]


class RunConfig(BaseModel):
    """All settings of a run. ``None`` leaves the choice to the planner."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )

    # models
    teacher: Source | None = setting(
        None, "Teacher model: a folder, a GGUF file, a LoRA adapter's folder, or a Hugging Face id", group="models"
    )
    student: Source | None = setting(
        None,
        "Student model: a folder, a Hugging Face id, or from-teacher to build it from the teacher's layers",
        group="models",
    )
    student_layers: Layers | None = setting(
        None,
        "Teacher layers to keep with --student from-teacher: a number (the layers are selected by measurements on the "
        "text), or a list such as 0,1,5",
        group="models",
        unit="layers",
    )
    student_width: float = setting(
        1.0,
        "Share of the teacher's MLP neurons and key-value heads to keep with --student from-teacher: 1 keeps all, 0.5 "
        "the more important half, measured on the text",
        group="models",
        gt=0,
        le=1,
    )
    trust_remote_code: bool = setting(
        False, "Run Python code that comes with a model; switch on only if you have read that code", group="models"
    )

    # data
    data: Source | None = setting(
        None,
        "Text to read: a .txt, .md, .jsonl, .json, .csv, .tsv, .parquet or .arrow file, compressed or not, a folder of "
        "them, or a data set id",
        group="data",
    )
    text_field: Text | None = setting(None, "Field or column that holds the text; detected when not set", group="data")
    data_split: Text = setting("train", "Split of a data set, on the Hugging Face hub or in a folder", group="data")
    allow_losses: bool = setting(
        False, "Continue even if more than half of the documents cannot be used", group="data", may_change=True
    )
    samples: int | None = setting(
        None, "Maximum number of training rows; all rows when not set", group="data", unit="rows", ge=1, le=MOST
    )
    sequence_length: int | None = setting(
        None,
        "Tokens per row; longer rows give more context and take more memory",
        group="data",
        unit="tokens",
        ge=2,
        le=1_048_576,
    )
    packing: bool = setting(
        True, "Fill each row with several documents; off puts one document in each row and pads it", group="data"
    )
    holdout: float = setting(
        0.05,
        "Share of the documents held out of training for evaluation: 0.01 is usually too little, 0.5 is half",
        group="data",
        gt=0,
        le=0.5,
    )

    # distillation
    target: Literal["unbiased", "topk", "ghost", "blend"] = setting(
        "unbiased",
        "Target made from a record: unbiased, all ids (matches full logits in expectation); topk, exact ids, "
        "renormalised; ghost, exact ids plus one class for the remaining mass; blend, exact ids, and the remaining "
        "mass "
        "goes to the label. The last three are for comparisons",
        group="distillation",
    )
    record_size: int = setting(
        12,
        "Token ids stored per position: 8 keep about 90 % of the gain of full logits, 12 about 93 %, 24 about 97 % at "
        "1.8 times the bytes of 12; use fewer than 6 only for quick trials",
        group="distillation",
        unit="ids",
        ge=1,
        le=255,
    )
    kd_weight: float = setting(
        1.0,
        "Weight of the teacher's loss against the label's: 0 trains on labels only, 1 on the teacher only (the "
        "end of an answer is always half the label's); try less than 1 if the teacher does not know this kind of text",
        group="distillation",
        ge=0,
        le=1,
    )
    temperature: float = setting(
        1.0,
        "Softmax temperature of teacher and student: 1 changes nothing, 2 and more give unlikely tokens more weight",
        group="distillation",
        ge=0.01,
        le=20,
    )

    compare: Literal["none", "labels"] = setting(
        "none",
        "Baseline in the report: labels trains the same student again with the same steps, on labels only",
        group="distillation",
        may_change=True,
    )

    # training
    epochs: int | None = setting(
        None, "Passes of the student over the training rows", group="training", may_change=True, ge=1, le=10_000
    )
    steps: int | None = setting(
        None,
        "Number of optimizer steps, instead of --epochs",
        group="training",
        unit="steps",
        may_change=True,
        ge=1,
        le=MOST,
    )
    learning_rate: float | None = setting(None, "Peak learning rate", group="training", gt=0, le=1)
    warmup: float = setting(
        0.05, "Share of the steps during which the learning rate rises from 0", group="training", ge=0, lt=1
    )
    schedule: Literal["cosine", "linear", "constant"] = setting(
        "cosine",
        "Learning rate after the warm-up: cosine falls to a tenth of the peak, linear to 0, constant stays",
        group="training",
    )
    weight_decay: float = setting(
        0.01, "AdamW's weight decay, applied to matrices only; 0 disables it", group="training", ge=0, le=1
    )
    clip_norm: float = setting(1.0, "Maximum gradient norm; 0 disables clipping", group="training", ge=0)
    lora_rank: int | None = setting(
        None,
        "Rank of a low-rank adapter (LoRA), the only part that is trained then: small matrices beside the student's "
        "linear layers; 0 trains all weights",
        group="training",
        ge=0,
        le=65_536,
    )
    lora_alpha: float | None = setting(
        None,
        "The adapter's product is multiplied by this over the rank; as large as the rank when not set",
        group="training",
        gt=0,
        le=1e6,
    )
    lora_targets: Text | None = setting(
        None,
        "Linear layers that get an adapter, such as q_proj,v_proj; all those of the decoder when not set",
        group="training",
    )
    seed: int = setting(0, "Seed of all random number generators", group="training", ge=0, le=2**63 - 1)

    # memory
    teacher_batch: int | None = setting(
        None, "Rows in a micro-batch of the teacher", group="memory", unit="rows", ge=1, le=4096
    )
    student_batch: int | None = setting(
        None, "Rows in a micro-batch of the student", group="memory", unit="rows", ge=1, le=4096
    )
    gradient_accumulation: int | None = setting(
        None, "Micro-batches per optimizer step", group="memory", unit="micro-batches", ge=1, le=65_536
    )
    gradient_checkpointing: bool | None = setting(
        None, "Recompute activations instead of storing them: less memory, about a third more time", group="memory"
    )
    layer_by_layer: bool | None = setting(
        None, "Stream the teacher's layers from disk; two layers are in memory at a time", group="memory"
    )
    cpu_offload: bool | None = setting(
        None,
        "Keep hidden states and optimizer states, on a CPU also the student's weights, off the compute device while "
        "they are not used: with a GPU in main memory, else in files; slower",
        group="memory",
    )
    quantization: Literal["none", "int8", "nf4"] = setting(
        "none",
        "Quantize the teacher's weights: int8 halves and nf4 quarters their memory, with some loss of accuracy",
        group="memory",
    )
    student_quantization: Literal["none", "int8", "nf4"] = setting(
        "none",
        "Quantize the student's own weights, which an adapter leaves as they are: int8 halves and nf4 quarters their "
        "memory, with some loss of accuracy",
        group="memory",
    )
    student_layer_by_layer: bool | None = setting(
        None,
        "Stream the student's layers from disk, twice a step, while an adapter is trained; two layers are in memory at "
        "a time",
        group="memory",
    )
    student_sharded: bool | None = setting(
        None,
        "With several processes, divide the student's weights, gradients and optimizer states among them (FSDP), "
        "instead of a whole student in each; not for an adapter",
        group="memory",
        may_change=True,
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = setting(
        None, "Number format of matrix products; chosen by measuring this machine when not set", group="memory"
    )
    optimizer: Literal["adamw", "adamw-8bit"] | None = setting(
        None, "AdamW with 32-bit or with 8-bit states", group="memory"
    )
    memory_budget: Bytes | None = setting(
        None,
        "Maximum memory of a phase on the compute device",
        group="memory",
        unit="bytes",
        may_change=True,
        ge=1,
        le=MOST,
    )
    ram_budget: Bytes | None = setting(
        None, "Maximum main memory of a phase", group="memory", unit="bytes", may_change=True, ge=1, le=MOST
    )
    keep_memory: bool | None = setting(
        None,
        "Keep freed memory in the phase's process for the next step instead of returning it to the system: faster, "
        "takes somewhat more memory",
        group="memory",
        may_change=True,
    )
    device: Text | None = setting(None, f"{NAMES}; the GPU with most free memory when not set", group="memory")
    threads: int | None = setting(
        None,
        "CPU threads, those of all processes together",
        group="memory",
        unit="threads",
        may_change=True,
        ge=1,
        le=1024,
    )
    processes: int = setting(
        1,
        "Processes that work side by side: each scores a share of the rows, and a share of each training step; each "
        "needs its own memory",
        group="memory",
        unit="processes",
        may_change=True,
        ge=1,
        le=1024,
    )

    # run
    output_dir: Folder | None = setting(None, "Folder of the run", group="run")
    cache_dir: Folder | None = setting(
        None,
        "Folder for the teacher's records, to share them between runs; inside the run's folder when not set. "
        "The cache folder of another run can be given too",
        group="run",
    )
    checkpoint_every: int | None = setting(
        None, "Optimizer steps between checkpoints", group="run", unit="steps", may_change=True, ge=1, le=MOST
    )
    evaluations: int | None = setting(
        None,
        "Evaluations on the hold-out during training, the last one at its end; each also saves a checkpoint",
        group="run",
        may_change=True,
        ge=1,
        le=1000,
    )
    keep_checkpoints: int = setting(
        2, "Checkpoints to keep besides the best one", group="run", may_change=True, ge=1, le=1000
    )

    # command
    until: Literal["prepare", "teacher"] | None = setting(
        None, "Stop after this phase; --resume continues from there", group="command", may_change=True
    )
    resume: bool = setting(False, "Continue the run in --output_dir", group="command", may_change=True)
    use_recommended: bool = setting(
        False,
        "Let the planner choose everything that is not given, including the models and the data",
        group="command",
        may_change=True,
    )
    profile: Text | None = setting(None, "Load settings from a saved profile", group="command", may_change=True)
    start_from: Folder | None = setting(
        None,
        "Begin with the student of a finished run and that run's settings; with --data or another learning rate, say",
        group="command",
    )
    records_from: Folder | None = setting(
        None, "Train another student from a run's records, with that run's settings", group="command"
    )
    demo: bool = setting(False, "Run a two-minute demo with the built-in teacher and text", group="command")
    dry_run: bool = setting(
        False, "Show the plan with its reasons and predictions; do not start the run", group="command", may_change=True
    )
    json_events: bool = setting(
        False,
        "Print events as JSON, one object per line, and nothing else",
        group="command",
        may_change=True,
        alias="json",  # a field of this name would hide a method of pydantic's
    )

    @model_validator(mode="wrap")
    @classmethod
    def _in_our_words(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Convert pydantic's errors, so that Python callers get the same error as the command line."""
        try:
            return validate(values)
        except ValidationError as error:
            raise SettingsError([_problem(entry) for entry in error.errors()]) from None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Make a RunConfig from a mapping; report all problems at once.

        Raises:
            SettingsError: with one Problem for each bad value, unknown name or contradiction.
        """
        problems: list[Problem] = []
        try:
            config = cls.model_validate(dict(values))
        except SettingsError as error:
            problems += error.problems
            bad = {problem.setting for problem in problems}
            try:  # also report contradictions between the valid values
                config = cls.model_validate({name: value for name, value in values.items() if name not in bad})
            except SettingsError:
                raise SettingsError(problems) from None
        problems += config.contradictions()
        if problems:
            raise SettingsError(problems)
        return config

    def contradictions(self) -> list[Problem]:
        """Return the problems of settings that contradict each other."""
        problems = []
        if self.epochs is not None and self.steps is not None:
            problems.append(Problem("steps", self.steps, f"give either --steps or --epochs ({self.epochs}), not both"))
        problems += [*self._beside_a_student(), *self._beside_an_adapter(), *self._beside_the_command()]
        if self.device is not None and not is_name(self.device):
            problems.append(Problem("device", self.device, NAMES))
        if self.precision == "fp16" and self.device == "cpu":
            problems.append(Problem("precision", "fp16", "is for GPUs; on the CPU use fp32 or bf16"))
        return problems

    def _beside_a_student(self) -> Iterator[Problem]:
        if self.student not in (None, "from-teacher"):
            accepted = f"needs --student from-teacher, not {self.student}"
            if self.student_layers is not None:
                yield Problem("student_layers", self.student_layers, accepted)
            if self.student_width < 1:
                yield Problem("student_width", self.student_width, accepted)

    def _beside_an_adapter(self) -> Iterator[Problem]:
        for name in OF_AN_ADAPTER:
            if self.lora_rank == 0 and getattr(self, name) not in (None, "none", False):
                yield Problem(name, getattr(self, name), "is for an adapter; --lora_rank 0 trains all weights")
        if self.student_layer_by_layer and self.gradient_checkpointing is False:
            accepted = "leave it out: --student_layer_by_layer computes layers again"
            yield Problem("gradient_checkpointing", False, accepted)
        if self.processes > 1 and self.student_sharded and self.wants_adapter:
            yield Problem("student_sharded", True, UNDIVIDED)

    def _beside_the_command(self) -> Iterator[Problem]:
        if self.resume and self.output_dir is None:
            yield Problem("resume", "", "needs --output_dir, the folder of the run to continue")
        if self.resume and self.dry_run:
            yield Problem("dry_run", "", "plans a new run; the plan of an existing run is in its run.json")
        if self.start_from is not None:
            yield from self._beside_start_from()
        if self.records_from is not None and (self.resume or self.demo):
            yield Problem("records_from", self.records_from, "is for a new run of your own models")
        if self.teacher == "from-teacher":
            yield Problem("teacher", self.teacher, "is for --student; give a teacher model")
        for name in ("teacher", "data", "text_field"):
            if self.demo and getattr(self, name) is not None:
                yield Problem(name, getattr(self, name), "the demo has its own; leave out one of the two")

    @property
    def wants_adapter(self) -> bool:
        """Return whether the settings ask for a low-rank adapter, with or without its rank."""
        asks = any(getattr(self, name) not in (None, "none", False) for name in OF_AN_ADAPTER)
        return bool(self.lora_rank) or (self.lora_rank is None and asks)

    def _beside_start_from(self) -> list[Problem]:
        if self.records_from is not None:
            return [Problem("records_from", self.records_from, "give either this or --start_from, not both")]
        if self.resume or self.demo:
            return [Problem("start_from", self.start_from, "is for a new run of your own models")]
        if self.student is not None:
            return [Problem("student", self.student, f"the student is the one of {self.start_from}; leave it out")]
        return []

    def asked(self) -> dict[str, Any]:
        """Return the values that the user set, as plain JSON or TOML, without settings of the group "command"."""
        chosen = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
        return {name: value for name, value in chosen.items() if SETTINGS[name].group != "command" or name == "demo"}

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """Return a copy with other values; all values are validated again."""
        return self.parse({**self.model_dump(by_alias=True, exclude_unset=True), **values})


def check_value(name: str, value: object) -> str | None:
    """Check one value as it is typed; return what is accepted as a sentence, or None if the value is valid.

    The wizard's form calls this on each key press; the texts are those of the command line.
    """
    try:
        RunConfig.model_validate({name: value})
    except SettingsError as error:
        return error.problems[0].accepted
    return None


def _problem(entry: Any) -> Problem:
    name = str(entry["loc"][0]) if entry["loc"] else "settings"
    if entry["type"] == "extra_forbidden":
        return Problem(name, entry["input"], f"there is no such setting{suggestion(name, SETTINGS)}")
    info = SETTINGS.get(name)
    if info is None:
        return Problem(name, entry["input"], str(entry["msg"]))
    if info.kind in ("text", "path", "layers") and entry["type"] == "value_error":
        return Problem(name, entry["input"], f"expected {entry['ctx']['error']}")
    if entry["type"] == "less_than_equal" and entry["ctx"]["le"] >= MOST:
        return Problem(name, entry["input"], f"expected at most {MOST:,}")
    return Problem(name, entry["input"], f"expected {info.accepted()}")


SETTINGS: dict[str, SettingInfo] = describe(RunConfig)
