"""Recipes: read, changed, checked; and the reference's configurations as recipes."""

from __future__ import annotations

import json

import pytest

from edgesam_deploy.distill.recipe import Recipe, built_in, merged, parse, read_stages
from edgesam_deploy.distill.yacs import READ, SAME, WITHOUT_EFFECT, _flat, import_yacs
from edgesam_deploy.errors import UnknownName, UsageError

PHASE_1 = """
DATA: {BATCH_SIZE: 8, DATA_PATH: datasets/SA-1B, NUM_WORKERS: 8}
MODEL: {TYPE: rep_vit_m1, PRETRAINED: weights/repvit_m1_distill_300.pth}
DISTILL: {EMBED_DIM: 256, NO_RAND: true, FUSE: true, PIXEL_WISE: 1.0, TEACHER_EMBED_PATH: teacher_embed}
TRAIN: {EPOCHS: 10, BASE_LR: 0.1, WARMUP_EPOCHS: 5, WEIGHT_DECAY: 0.01, FIND_UNUSED_PARAMETERS: false}
AMP_ENABLE: false
"""
PHASE_2 = """
BASE: [base.yaml]
DATA: {BATCH_SIZE: 4, DATA_PATH: datasets/SA-1B, NUM_WORKERS: 4, FILTER_BY_AREA: ["32*32", null]}
DISTILL:
  {FUSE: true, ENCODER_ONLY: false, PIXEL_WISE: -1, DECODER_BCE: 5.0, DECODER_DICE: 5.0, MAX_ALLOWED_PROMPTS: 16,
   PROMPT_TYPE: [box, point], DECODE_ITERS: 2, ITER_ON_BOX: true, MULTIMASK_OUTPUT: 4}
TRAIN:
  {EPOCHS: 5, BASE_LR: 3.2e-3, MIN_LR: 3.2e-4, WARMUP_LR: 3.2e-5, WARMUP_EPOCHS: 0, WEIGHT_DECAY: 0.05, CLIP_GRAD: 0.01}
"""


@pytest.mark.parametrize("name", [name for name in built_in() if name not in ("demo", "demo_dyt")])
def test_every_built_in_recipe_is_one(name):
    (recipe,) = read_stages(name)
    assert recipe.name == name
    assert recipe.description


def test_stages(tmp_path):
    stages = read_stages("demo", ["train.seed=3"], out=tmp_path)
    teacher = ["demo_teacher_small", "demo_teacher_medium", "demo_teacher"]
    assert [stage.name for stage in stages] == [*teacher, "demo_encoder", "demo_student", "demo_finetune"]
    assert all(stage.train.seed == 3 for stage in stages)
    assert {stage.data.root for stage in stages} == {f"{tmp_path}/scenes", f"{tmp_path}/plain"}
    assert stages[3].teacher.checkpoint == f"{tmp_path}/demo_teacher/model.safetensors"
    assert stages[4].teacher.config == stages[3].teacher.config  # what is extended
    pair = read_stages("demo_dyt", ["train.seed=3"], out=tmp_path)
    assert [stage.name for stage in pair] == ["demo_encoder_dyt", "demo_student_dyt"]
    same = ("teacher", "data", "objective", "optimizer", "rates", "train")
    for ours, theirs in zip(stages[3:5], pair, strict=True):
        assert [getattr(ours, name) for name in same] == [getattr(theirs, name) for name in same]


def test_the_values_of_the_paper():
    (one,), (two,) = read_stages("edge_sam_phase1"), read_stages("edge_sam_phase2")
    assert (one.rates.base, one.rates.minimum, one.rates.warmup, one.rates.warmup_epochs) == (0.1, 5e-6, 5e-7, 5)
    assert (one.train.epochs, one.optimizer.weight_decay, one.optimizer.clip_grad) == (10, 0.01, 5.0)
    assert (two.rates.base, two.rates.minimum, two.rates.warmup, two.rates.warmup_epochs) == (3.2e-3, 3.2e-4, 3.2e-5, 0)
    assert (two.objective.bce, two.objective.dice, two.objective.iterations, two.objective.multimask) == (5, 5, 2, 4)
    assert (two.train.epochs, two.optimizer.weight_decay, two.optimizer.clip_grad) == (5, 0.05, 0.01)
    dyt = {n: read_stages(f"edge_sam_dyt_step{n}")[0] for n in (1, 2, 3, 4)}
    assert [r.train.epochs for r in dyt.values()] == [20, 20, 40, 20]
    assert [r.data.batch_size for r in dyt.values()] == [96, 16, 16, 16]
    assert [r.rates.base for r in dyt.values()] == [0.1, 3.2e-3, 3.2e-2, 3.2e-3]
    assert [r.rates.warmup_epochs for r in dyt.values()] == [5, 2, 2, 1]
    assert [r.model.from_teacher for r in dyt.values()] == [False, True, True, False]
    frozen = {"image_encoder": "encoder", "mask_decoder": "decoder"}
    assert [[frozen[p] for p in r.train.freeze if p in frozen] for r in dyt.values()] == [
        [],
        ["decoder"],
        ["encoder"],
        [],
    ]


def test_set():
    (recipe,) = read_stages(
        "edge_sam_phase2", ["rates.base=1e-2", "data.root=my/data", 'objective.prompts=["box"]', "train.precision=bf16"]
    )
    assert (recipe.rates.base, recipe.data.root, recipe.objective.prompts) == (1e-2, "my/data", ("box",))
    assert recipe.train.precision == "bf16"
    with pytest.raises(UsageError, match=r"--set rates: must be section\.key=value"):
        read_stages("edge_sam_phase2", ["rates"])


def test_a_file_of_ones_own_may_extend_a_built_in(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "edge_sam_phase1"\n[train]\nepochs = 30\n')
    (recipe,) = read_stages(str(tmp_path / "mine.toml"))
    assert (recipe.name, recipe.train.epochs, recipe.rates.base) == ("mine", 30, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": {"base": -1}}, r"rates\.base: .*greater than 0, got -1"),
        ({"rates": {"bass": 1}}, r"rates\.bass: no such key; did you mean base\?"),
        ({"trian": {}}, r"trian: no such key; did you mean train\?"),
        ({"train": {"epochs": 0}}, r"train\.epochs: .*got 0"),
        ({"train": {"precision": "int4"}}, r"train\.precision: .*'fp32'"),
        ({"data": {"batch_size": 10**9}}, r"data\.batch_size"),
        ({"data": {"layout": "imagenet"}}, r"data\.layout"),
        ({"objective": {"pixel": float("nan")}}, r"objective\.pixel"),
        ({"objective": {"pixel": 0}}, "no loss has a weight above 0"),
        ({"objective": {"dice": 1}}, "dice: no loss of kind 'encoder'"),
        ({"rates": {"warmup_epochs": 50}}, "more than the 10 of train.epochs"),
        ({"rates": {"minimum": 1}}, "must not exceed rates.base"),
        ({"teacher": None}, r"needs a \[teacher\]"),
        ({"reference_faults": ["everything"]}, "reference_faults"),
        ({"reference_faults": ["bce_on_probabilities"], "train": {"precision": "fp16"}}, "does not survive fp16"),
    ],
)
def test_absurd_values_are_refused_by_name(change, message):
    (good,) = read_stages("edge_sam_phase1")
    with pytest.raises(UsageError, match=message):
        parse(merged(good.model_dump(), change), where="x")


def test_files_that_are_none(tmp_path):
    with pytest.raises(UnknownName, match="did you mean edge_sam_phase1"):
        read_stages("edge_sam_phas1")
    with pytest.raises(UsageError, match="no such recipe file"):
        read_stages(str(tmp_path / "no.toml"))
    (tmp_path / "bad.toml").write_text("[model\n")
    with pytest.raises(UsageError, match="not readable as TOML"):
        read_stages(str(tmp_path / "bad.toml"))
    (tmp_path / "loop.toml").write_text('extends = "loop"')
    with pytest.raises(UsageError, match="extends itself"):
        read_stages(str(tmp_path / "loop.toml"))


# --- the reference's YAML --------------------------------------------------------------------------------------------


def test_phase_1_of_the_reference(tmp_path):
    (tmp_path / "p1.yaml").write_text(PHASE_1)
    (found,), (ours,) = read_stages(str(tmp_path / "p1.yaml")), read_stages("edge_sam_phase1")
    assert found.model.checkpoint == "weights/repvit_m1_distill_300.pth"
    for section in ("objective", "rates", "optimizer"):
        assert getattr(found, section) == getattr(ours, section).model_copy(
            update={"prompts": ("box",)} if section == "objective" else {}
        )
    assert (found.train.epochs, found.data.batch_size, found.model.name) == (10, 8, "repvit_m1")


def test_phase_2_merges_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text(PHASE_1)
    (tmp_path / "p2.yaml").write_text(PHASE_2)
    (found,), (ours,) = read_stages(str(tmp_path / "p2.yaml")), read_stages("edge_sam_phase2")
    assert (found.objective, found.rates, found.optimizer) == (ours.objective, ours.rates, ours.optimizer)
    assert found.data.filter_by_area == (1024, 0)
    assert found.model.checkpoint == "weights/repvit_m1_distill_300.pth"  # from the base
    assert (found.model.name, found.model.from_teacher) == ("edge_sam", True)
    assert found.train.freeze == ("prompt_encoder",)
    (tmp_path / "p3.yaml").write_text(PHASE_2.replace("{FUSE: true,", "{FUSE: true, LORA: true,"))
    (adapted,) = read_stages(str(tmp_path / "p3.yaml"))
    assert (adapted.model.lora, found.model.lora) == (16, 0)  # the pairs alone learn


def test_every_key_of_the_reference_is_accounted_for():
    defaults = _flat(json.loads((built_in()["demo"].parent / "yacs_defaults.json").read_text()))
    assert defaults.keys() <= READ | SAME.keys() | WITHOUT_EFFECT.keys()
    for place in SAME.values():
        section, _, key = place.partition(".")
        assert key in Recipe.model_fields[section].annotation.model_fields, place


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAIN: {EPOKS: 3}", r"no key of the reference's configuration: TRAIN\.EPOKS"),
        ("MODEL: {TYPE: resnet}", r"MODEL\.TYPE 'resnet'"),
        ("DATA: {FILTER_BY_AREA: ['__import__(\"os\")', null]}", "must be a number or a product"),
        ("BASE: [x.yaml]", "BASE leads back to itself"),
        ("- 1", "a mapping of keys"),
        ("a: [", "not readable as YAML"),
        ("MODEL: {MASK_HQ: true}", "HQ stage is the recipe edge_sam_dyt_hq"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        import_yacs(tmp_path / "x.yaml")
