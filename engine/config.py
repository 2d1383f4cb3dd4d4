"""RunConfig: every setting of a run, defined here and nowhere else.

The command line, the wizard's form, the profile files, ``run.json`` and the table in the documentation are all made
from this one model. A field that is ``None`` is the planner's to decide; what a person sets is never changed.

This file knows nothing of torch, of folders or of memory: whether a setting *fits* is the planner's question.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from engine.settings import (
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
    "models": "Which model learns from which",
    "data": "What they read",
    "distillation": "What the student learns from",
    "training": "How the student learns",
    "memory": "How much fits at a time",
    "run": "Where it happens and what is kept",
    "command": "How this command behaves",
}

Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Text = Annotated[str, BeforeValidator(plain_text)]
Source = Annotated[str, BeforeValidator(plain_path)]
Layers = Annotated[int | str, BeforeValidator(parse_layers)]
Folder = Annotated[Path, BeforeValidator(plain_path)]


class RunConfig(BaseModel):
    """Everything that can be set about a run. ``None`` leaves the choice to the planner."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )

    # models
    teacher: Source | None = setting(
        None, "The model that knows: a folder, a GGUF file, or a Hugging Face id", group="models"
    )
    student: Source | None = setting(
        None,
        "The model that learns: a folder, a Hugging Face id, or from-teacher to cut it from the teacher's layers",
        group="models",
    )
    student_layers: Layers | None = setting(
        None,
        "Layers kept from the teacher when the student is from-teacher: how many, and measurement on the text chooses, "
        "or which, such as 0,1,5",
        group="models",
        unit="layers",
    )
    student_width: float = setting(
        1.0,
        "Share of the teacher's MLP neurons and key-value heads that a student from-teacher keeps, those that do most "
        "on the text: 1 keeps all, 0.5 half",
        group="models",
        gt=0,
        le=1,
    )
    trust_remote_code: bool = setting(
        False, "Run Python code that comes with a model; off unless you have read that code", group="models"
    )

    # data
    data: Source | None = setting(
        None,
        "Text to read: a .txt, .md, .jsonl, .json, .csv, .tsv, .parquet or .arrow file, compressed or not, a folder of "
        "them, or a data set id",
        group="data",
    )
    text_field: Text | None = setting(
        None, "The field or column that holds the text; found by looking when not set", group="data"
    )
    data_split: Text = setting("train", "The split of a data set, on the Hugging Face hub or in a folder", group="data")
    allow_losses: bool = setting(
        False, "Go on though more than half of the documents cannot be used", group="data", may_change=True
    )
    samples: int | None = setting(
        None, "Rows of text to train on, at most; all of them when not set", group="data", unit="rows", ge=1, le=MOST
    )
    sequence_length: int | None = setting(
        None,
        "Tokens in a row; longer sees more context and takes more memory",
        group="data",
        unit="tokens",
        ge=2,
        le=1_048_576,
    )
    packing: bool = setting(
        True, "Fill each row with several documents; off puts one document in a row and pads it", group="data"
    )
    holdout: float = setting(
        0.05,
        "Share of the documents kept out of training, to measure with: 0.01 is hardly enough, 0.5 is half",
        group="data",
        gt=0,
        le=0.5,
    )

    # distillation
    target: Literal["unbiased", "topk", "ghost", "blend"] = setting(
        "unbiased",
        "What is read from a record: unbiased, all of it, as full logits on average; topk, its exact ids alone; ghost, "
        "these and one class for the rest; blend, these and the rest on the label. The last three are for comparisons",
        group="distillation",
    )
    record_size: int = setting(
        12,
        "Token ids kept of the teacher's distribution at each position: 8 give nine tenths of what full logits would, "
        "24 nearly all, at 1.8 times the bytes of 12; fewer than 6 are for trying out",
        group="distillation",
        unit="ids",
        ge=1,
        le=255,
    )
    kd_weight: float = setting(
        1.0,
        "Weight of the teacher against the label: 0 trains on labels only, 1 on the teacher only (the end of an answer "
        "is half the label's all the same); less than 1 where the labels know what the teacher does not",
        group="distillation",
        ge=0,
        le=1,
    )
    temperature: float = setting(
        1.0,
        "Softens both distributions: 1 leaves them as they are, 2 and more show what is unlikely",
        group="distillation",
        ge=0.01,
        le=20,
    )

    compare: Literal["none", "labels"] = setting(
        "none",
        "What stands beside the student in the report: labels trains the same student again with the same steps, on "
        "labels alone",
        group="distillation",
        may_change=True,
    )

    # training
    epochs: int | None = setting(
        None, "Times the student reads the data", group="training", may_change=True, ge=1, le=10_000
    )
    steps: int | None = setting(
        None, "Optimizer steps, instead of epochs", group="training", unit="steps", may_change=True, ge=1, le=MOST
    )
    learning_rate: float | None = setting(None, "Peak learning rate", group="training", gt=0, le=1)
    warmup: float = setting(
        0.05, "Share of the steps over which the learning rate rises from 0", group="training", ge=0, lt=1
    )
    schedule: Literal["cosine", "linear", "constant"] = setting(
        "cosine", "How the learning rate falls after the warm-up: to a tenth, to 0, or not at all", group="training"
    )
    weight_decay: float = setting(
        0.01, "AdamW's weight decay, on matrices only: 0 is none", group="training", ge=0, le=1
    )
    clip_norm: float = setting(1.0, "Largest norm of the whole gradient: 0 never clips", group="training", ge=0)
    seed: int = setting(0, "Seed of every random choice", group="training", ge=0, le=2**63 - 1)

    # memory
    teacher_batch: int | None = setting(
        None, "Rows the teacher reads at a time", group="memory", unit="rows", ge=1, le=4096
    )
    student_batch: int | None = setting(
        None, "Rows the student trains on at a time (micro-batch)", group="memory", unit="rows", ge=1, le=4096
    )
    gradient_accumulation: int | None = setting(
        None, "Micro-batches in one optimizer step", group="memory", unit="micro-batches", ge=1, le=65_536
    )
    gradient_checkpointing: bool | None = setting(
        None, "Compute activations again instead of keeping them: less memory, about a third more time", group="memory"
    )
    layer_by_layer: bool | None = setting(
        None, "Stream the teacher's layers from disk, so that only two are in memory", group="memory"
    )
    cpu_offload: bool | None = setting(
        None,
        "Keep what waits off the compute device: hidden states, moments, on a CPU the student's weights too; on a GPU "
        "in main memory, else in files; slower",
        group="memory",
    )
    quantization: Literal["none", "int8", "nf4"] = setting(
        "none", "The teacher's weights in fewer bits: int8 halves and nf4 quarters them, at some loss", group="memory"
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = setting(
        None, "Number format of the matrix products; probed on this machine when not set", group="memory"
    )
    optimizer: Literal["adamw", "adamw-8bit"] | None = setting(
        None, "AdamW with 32-bit or with 8-bit states", group="memory"
    )
    memory_budget: Bytes | None = setting(
        None,
        "Most memory that a phase may take on the compute device",
        group="memory",
        unit="bytes",
        may_change=True,
        ge=1,
        le=MOST,
    )
    ram_budget: Bytes | None = setting(
        None, "Most main memory that a phase may take", group="memory", unit="bytes", may_change=True, ge=1, le=MOST
    )
    keep_memory: bool | None = setting(
        None,
        "Keep freed memory in the phase's process for the next step instead of handing it back to the system: faster, "
        "takes some more",
        group="memory",
        may_change=True,
    )
    device: Text | None = setting(None, f"{NAMES}; the GPU with most free memory when not set", group="memory")
    threads: int | None = setting(None, "CPU threads", group="memory", unit="threads", may_change=True, ge=1, le=1024)

    # run
    output_dir: Folder | None = setting(None, "The run's folder", group="run")
    cache_dir: Folder | None = setting(
        None,
        "Keep the teacher's records here, to share them between runs; else they are in the run's folder. "
        "Another run's cache folder is used as it is",
        group="run",
    )
    checkpoint_every: int | None = setting(
        None, "Optimizer steps between checkpoints", group="run", unit="steps", may_change=True, ge=1, le=MOST
    )
    evaluations: int | None = setting(
        None,
        "Times the hold-out loss is taken during training, each with a checkpoint; the last one is at its end",
        group="run",
        may_change=True,
        ge=1,
        le=1000,
    )
    keep_checkpoints: int = setting(
        2, "Checkpoints kept beside the best one", group="run", may_change=True, ge=1, le=1000
    )

    # command
    until: Literal["prepare", "teacher"] | None = setting(
        None, "Stop after this phase; --resume goes on from there", group="command", may_change=True
    )
    resume: bool = setting(False, "Go on with the run in --output_dir", group="command", may_change=True)
    use_recommended: bool = setting(
        False,
        "Let the planner pick everything that is not given, the models and the data too",
        group="command",
        may_change=True,
    )
    profile: Text | None = setting(None, "Start from a saved profile", group="command", may_change=True)
    demo: bool = setting(
        False, "A run in two minutes with the small teacher and the text that are already here", group="command"
    )
    dry_run: bool = setting(
        False, "Show the plan, its reasons and predictions; start nothing", group="command", may_change=True
    )
    json_events: bool = setting(
        False,
        "Print events, one JSON object a line, and nothing else",
        group="command",
        may_change=True,
        alias="json",  # a field of this name would hide a method of pydantic's
    )

    @model_validator(mode="wrap")
    @classmethod
    def _in_our_words(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Whoever makes a RunConfig with a value that cannot be gets the same error as on the command line."""
        try:
            return validate(values)
        except ValidationError as error:
            raise SettingsError([_problem(entry) for entry in error.errors()]) from None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Make a RunConfig, or say everything that is wrong with it at once.

        Raises:
            SettingsError: with one Problem for each bad value, unknown name or contradiction.
        """
        problems: list[Problem] = []
        try:
            config = cls.model_validate(dict(values))
        except SettingsError as error:
            problems += error.problems
            bad = {problem.setting for problem in problems}
            try:  # contradictions between the values that are good are said in the same breath
                config = cls.model_validate({name: value for name, value in values.items() if name not in bad})
            except SettingsError:
                raise SettingsError(problems) from None
        problems += config.contradictions()
        if problems:
            raise SettingsError(problems)
        return config

    def contradictions(self) -> list[Problem]:
        """Pairs of settings that cannot both be meant."""
        problems = []
        if self.epochs is not None and self.steps is not None:
            problems.append(Problem("steps", self.steps, f"give either --steps or --epochs ({self.epochs}), not both"))
        if self.student_layers is not None and self.student not in (None, "from-teacher"):
            problems.append(
                Problem(
                    "student_layers", self.student_layers, f"only goes with --student from-teacher, not {self.student}"
                )
            )
        if self.student_width < 1 and self.student not in (None, "from-teacher"):
            problems.append(
                Problem(
                    "student_width", self.student_width, f"only goes with --student from-teacher, not {self.student}"
                )
            )
        if self.resume and self.output_dir is None:
            problems.append(Problem("resume", "", "needs --output_dir, the folder of the run to go on with"))
        if self.resume and self.dry_run:
            problems.append(Problem("dry_run", "", "plans a new run; the plan of a run that exists is in its run.json"))
        if self.teacher == "from-teacher":
            problems.append(Problem("teacher", self.teacher, "is for --student; name the model that knows"))
        if self.demo:
            for name in ("teacher", "data", "text_field"):
                if getattr(self, name) is not None:
                    problems.append(
                        Problem(name, getattr(self, name), "the demo brings its own; leave out one of the two")
                    )
        if self.device is not None and not is_name(self.device):
            problems.append(Problem("device", self.device, NAMES))
        if self.precision == "fp16" and self.device == "cpu":
            problems.append(Problem("precision", "fp16", "is for GPUs; on the CPU use fp32 or bf16"))
        return problems

    def asked(self) -> dict[str, Any]:
        """What was set by the person, as plain JSON or TOML values, without the switches of the one command."""
        chosen = self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
        return {name: value for name, value in chosen.items() if SETTINGS[name].group != "command" or name == "demo"}

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """A copy with other values, checked like new ones."""
        return self.parse({**self.model_dump(by_alias=True, exclude_unset=True), **values})


def check_value(name: str, value: object) -> str | None:
    """Check one value as it is typed; the sentence says what is accepted, None that it is good.

    The wizard's form calls this on each key; the words are those of the command line.
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
