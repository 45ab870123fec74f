"""Job specs: what is refused and in which words, overrides, the environment, secrets, the canonical recipe."""

import contextlib
import json
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from stereo_jobs.errors import SpecError
from stereo_jobs.quality.config import QualityConfig
from stereo_jobs.spec import JobSpec, Recipe, digest
from stereo_jobs.spec_reading import load_spec, parse_spec

MINIMAL = {"manifest": "prompts.parquet", "output": "out"}
SECRET = "hunter2-do-not-print"


def nested(path, value):
    """`a.b.c`, v -> {a: {b: {c: v}}}."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def message(data):
    with pytest.raises(SpecError) as caught:
        parse_spec(data)
    return str(caught.value)


def test_manifest_and_output_are_enough():
    spec = parse_spec(MINIMAL)
    assert spec.manifests == ("prompts.parquet",)
    assert spec.recipe.scale_percent == 8.0
    assert (spec.recipe.method.preset, spec.recipe.method.shift_step) == ("best", 8)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("reciep", {}, "reciep: unknown field; did you mean recipe?"),
        ("runtime.batchsize", 2, "runtime.batchsize: unknown field; did you mean batch_size? (got 2)"),
        ("recipe.method.shift_stp", 3, "recipe.method.shift_stp: unknown field; did you mean shift_step?"),
        ("recipe.models.depth.polarty", "inverse", "did you mean polarity?"),
        ("runtime.actors", {"min": 1, "mx": 2}, "runtime.actors.mx: unknown field; did you mean max?"),
        ("recipe.size.zzz", 1, "recipe.size.zzz: unknown field; known: width, height"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(path, value, words):
    assert words in message(MINIMAL | nested(path, value))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("recipe.scale_percent", 0.08, "recipe.scale_percent: must be a percentage"),
        ("recipe.scale_percent", 0.08, "0.08 looks like a fraction: write 8 "),
        ("recipe.scale_percent", 31, "from 0.5 to 30"),
        ("recipe.scale_percent", float("nan"), "from 0.5 to 30"),
        ("recipe.scale_percent", {"min": 0.04, "max": 9}, "recipe.scale_percent.min: must be a percentage"),
        ("recipe.variants.scale_percent", [8, 0.08], "0.08 looks like a fraction"),
        ("runtime.lease_ttl_s", "60s", "runtime.lease_ttl_s: Input should be a valid number"),
        ("runtime.lease_ttl_s", float("nan"), "greater than or equal to 0"),
        ("recipe.seed", 0.5, "recipe.seed: Input should be a valid integer"),
    ],
)
def test_a_wrong_unit_is_refused_with_the_right_one(path, value, words):
    assert words in message(MINIMAL | nested(path, value))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("recipe.method.shift_step", 49, "shift_step must be below steps - 1 = 19"),
        ("recipe.method", {"steps": 5, "shift_step": 4}, "shift_step must be below steps - 1 = 4"),
        ("recipe.method.guidance_scale", 0.5, "greater than or equal to 1 (got 0.5)"),
        ("recipe.method.preset", "worst", "Input should be 'official' or 'best' (got 'worst')"),
        ("recipe.method.preset", ["official"], "recipe.method.preset: Input should be 'official' or 'best'"),
        ("recipe.models.clip", {"dtype": "float16"}, "recipe.models.clip.path: required, but missing"),
        ("recipe.quality.min_clip", 20, "recipe: quality.min_clip needs a CLIP model; set models.clip, or"),
        ("recipe.method.geometry", "metric", "method.geometry metric needs known disparities, and mode text has none"),
        ("recipe.method.shift_both", True, "composite must be false with shift_both"),
        ("recipe.scale_percent", {"min": 9, "max": 3}, "needs min < max of one sign, got min 9 and max 3"),
        ("recipe.scale_percent", {"min": -3, "max": 3}, "needs min < max of one sign"),
        ("recipe.scale_percent", {"min": 3}, "recipe.scale_percent.max: required, but missing"),
        ("recipe.scale_percent", None, "recipe.scale_percent: Input should be a valid number (got None)"),
        ("recipe.variants.scale_percent", [4, 4], "must not name a scale twice"),
        ("recipe.variants.seeds", 0, "recipe.variants.seeds: Input should be greater than 0"),
        ("recipe.seed", 2**63, "recipe.seed: Input should be less than"),
        ("recipe.size", {"width": 8, "height": 64}, "recipe.size.width: Input should be greater than or equal to 32"),
        ("runtime.actors", 0, "runtime.actors: Input should be greater than 0 (got 0)"),
        ("runtime.actors", {"min": 3, "max": 2}, "runtime.actors: needs min <= max, got min 3 and max 2"),
        ("runtime.max_failure_ratio", 1.5, "less than or equal to 1 (got 1.5)"),
        ("runtime.device", "tpu", "runtime.device: Input should be 'auto', 'cuda' or 'cpu' (got 'tpu')"),
        ("runtime.storage.access_key_id", "AKIA", "access_key_id and secret_access_key go together"),
        ("runtime", None, "runtime: Input should be a valid dictionary"),
        ("manifest", [], "manifest: must name at least one Parquet file"),
        ("manifest", ["a.parquet", ""], "manifest: must name at least one Parquet file"),
        ("output", "", "output: String should have at least 1 character"),
    ],
)
def test_an_impossible_value_is_refused_by_its_rule(path, value, words):
    assert words in message(MINIMAL | nested(path, value))


def test_missing_fields_are_named_all_at_once():
    text = message({})
    assert "manifest: required, but missing" in text
    assert "output: required, but missing" in text


def test_every_broken_rule_gets_its_own_line():
    text = message(MINIMAL | {"runtime": {"actors": 0, "lease_ttl_s": "60s"}, "recipe": {"seed": -1}})
    assert len(text.splitlines()) == 4


# --- Files ---


def test_yaml_and_json_read_alike(tmp_path):
    data = MINIMAL | {"recipe": {"scale_percent": {"min": 2, "max": 6.5}}, "runtime": {"batch_size": 3}}
    (tmp_path / "a.json").write_text(json.dumps(data))
    (tmp_path / "a.yaml").write_text(
        "manifest: prompts.parquet\noutput: out\n"
        "recipe:\n  scale_percent: {min: 2, max: 6.5}\nruntime:\n  batch_size: 3\n"
    )
    spec = load_spec(tmp_path / "a.yaml")
    assert spec == load_spec(tmp_path / "a.json") == parse_spec(data)
    assert spec.recipe.scale_percent.max == 6.5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"- a\n- b\n", "must be a mapping"),
        (b"", "must be a mapping"),
        (b"recipe: [1,\noutput: x", "not valid YAML or JSON"),
        (b"output: '\xff\xfe'", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_mapping_is_refused(tmp_path, content, words):
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=words) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"job.yaml: cannot be read"):
        load_spec(tmp_path / "job.yaml")


def test_fields_given_in_code_need_no_file_and_win_over_overrides():
    spec = load_spec(None, ["output=elsewhere", "runtime.batch_size=8"], **MINIMAL)
    assert (spec.output, spec.runtime.batch_size) == ("out", 8)


def damaged(text, random):
    """Damage a text as editors, merges and programs do: pieces moved, doubled, cut, and put in."""
    pieces = [
        "&a ",
        "*a",
        "<<: ",
        "[",
        "}",
        "- ",
        "!!int ",
        "9" * 200,
        "0x",
        "2024-02-30",
        ".inf",
        "${HOME}",
        "\t",
        "\0",
    ]
    pieces += [
        "\x1b[31m",
        "\ud800",
        "\ufeff",
        "'",
        '"\\x00"',
        "~nobody/x",
        "file://host/x",
        "null",
        ": ",
        "---\n",
        "? ",
    ]
    for _ in range(random.randint(1, 4)):
        i, j = sorted(random.randrange(len(text) + 1) for _ in range(2))
        kind = random.randrange(4)
        inside = (random.choice(pieces), text[i:j] * random.randint(2, 40), "", text[j : j + 30] + text[i:j])[kind]
        text = text[:i] + inside + text[(i if kind == 0 else j) :]
    return text


@given(st.randoms(use_true_random=False), st.sampled_from(["yaml", "json"]))
@settings(max_examples=300, deadline=None)
def test_a_damaged_spec_is_a_spec_or_refused(random, kind):
    full = parse_spec(MINIMAL).model_dump(mode="json")
    text = damaged(json.dumps(full) if kind == "json" else yaml.safe_dump(full, sort_keys=False), random)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.yaml")
        path.write_bytes(text.encode(errors="surrogatepass"))
        try:
            spec = load_spec(path)
        except SpecError as error:
            assert len(str(error).splitlines()) < 60
        else:
            digest(spec.recipe.canonical())
            spec.model_dump_json()


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_override_is_taken_or_refused(text):
    for override in (text, f"recipe.negative_prompt={text}", f"output={text}", f"{text}=1"):
        with contextlib.suppress(SpecError):
            load_spec(None, [override], manifest="a.parquet")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("output", "file://host/x", "output: write a local file as file:///folder/name"),
        ("output", "~nobody-at-all/x", "output: there is no such user"),
        ("output", "gs://bucket/x", "output: unknown scheme"),
        ("output", "a\0b", "output: has control characters"),
        ("output", "a\udcff", "output: has control characters or broken Unicode"),
        ("recipe.negative_prompt", "a\x1b[2J", "recipe.negative_prompt: has control characters"),
        ("manifest", ["a.parquet", "http://x/b.parquet"], "manifest: unknown scheme"),
        (
            "runtime.allowed_prefixes",
            ["http://x"],
            "runtime.allowed_prefixes: unknown scheme; use a local path or s3://",
        ),
        ("runtime.allowed_prefixes", [""], "runtime.allowed_prefixes: must not be empty; write . for the working"),
        ("runtime.allowed_prefixes", ["s3://b/%2e%2e/x"], "runtime.allowed_prefixes: '..' is not allowed"),
        ("runtime.allowed_prefixes", ["s3:///x"], "write it as s3://bucket/prefix"),
        ("runtime.lease_ttl_s", float("inf"), "runtime.lease_ttl_s: must be at most 10000000 seconds (got inf)"),
        ("runtime.shard_timeout_s", "inf", "runtime.shard_timeout_s: must be at most 10000000 seconds"),
        ("runtime.storage.endpoint_url", "http://a b", "runtime.storage.endpoint_url: String should match pattern"),
        ("runtime.storage.endpoint_url", "http://[", "the URL needs a host"),
        ("runtime.storage.endpoint_url", "http://host:99999", "the URL needs a host, with a port from 0 to 65535"),
        pytest.param("recipe.seed", 10**6000, "recipe.seed: ", id="digits"),
        ("runtime.batch_size", "9" * 6000, "runtime.batch_size: "),
    ],
)
def test_a_place_or_number_that_cannot_be_is_refused(path, value, words):
    text = message(MINIMAL | nested(path, value))
    assert words in text
    assert len(text) < 500


def test_a_name_that_a_terminal_would_obey_is_refused():
    text = message(MINIMAL | {"\x1b[31mkey": 1})
    assert "the name '\\x1b[31mkey' has control characters in it" in text


# --- Overrides ---


def test_overrides_reach_nested_fields_and_win_over_the_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(MINIMAL | {"recipe": {"seed": 1, "size": {"width": 64, "height": 64}}}))
    spec = load_spec(
        path,
        ["recipe.seed=7", "recipe.size=null", "recipe.method.attention=bi", "recipe.variants.scale_percent=[4, 8]"],
    )
    assert (spec.recipe.seed, spec.recipe.size, spec.recipe.method.attention) == (7, None, "bi")
    assert spec.recipe.variants.scale_percent == (4, 8)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("recipe.seed", "write it as path.to.field=value"),
        ("=3", "write it as path.to.field=value"),
        ("recipe..seed=3", "write it as path.to.field=value"),
        ("recipe.size=[1", "not valid YAML"),
        ("output.width=3", "output is a single value, which has no fields"),
        ("recipe.sead=3", "recipe.sead: unknown field; did you mean seed?"),
    ],
)
def test_a_bad_override_is_refused(override, words):
    with pytest.raises(SpecError) as caught:
        load_spec(None, ["output=out", override], manifest="a.parquet")
    assert words in str(caught.value)


# --- The environment ---


def test_variables_are_substituted_outside_the_recipe(monkeypatch):
    monkeypatch.setenv("SJ_BUCKET", "pictures")
    monkeypatch.setenv("SJ_KEY", SECRET)
    spec = parse_spec(
        {
            "manifest": ["s3://${SJ_BUCKET}/a/${SJ_BUCKET}.parquet"],
            "output": "s3://${SJ_BUCKET}/out",
            "runtime": {"storage": {"access_key_id": "id", "secret_access_key": "${SJ_KEY}"}},
        }
    )
    assert spec.manifests == ("s3://pictures/a/pictures.parquet",)
    assert spec.output == "s3://pictures/out"
    assert spec.runtime.storage.secret_access_key.get_secret_value() == SECRET


def test_an_unset_variable_is_refused_with_its_field():
    assert message(MINIMAL | nested("runtime.storage.region", "${SJ_UNSET}")) == (
        "runtime.storage.region: the environment variable SJ_UNSET is not set"
    )


def test_variables_are_refused_in_the_recipe(monkeypatch):
    monkeypatch.setenv("SJ_PATH", SECRET)
    text = message(MINIMAL | nested("recipe.models.depth.path", "/models/${SJ_PATH}"))
    assert "recipe.models.depth.path" in text
    assert "not allowed in the recipe" in text
    assert SECRET not in text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("runtime.batch_size", "${SJ_KEY}"),
        ("runtime.actors", {"min": "x${SJ_KEY}", "max": 2}),
        ("runtime.allowed_prefixes", ["http://${SJ_KEY}"]),
        ("runtime.device", "${SJ_KEY}"),
        ("output", "file:${SJ_KEY}"),
        ("manifest", ["a", "http://${SJ_KEY}"]),
        ("zzz", ["${SJ_KEY}"]),
    ],
)
def test_a_bad_value_from_the_environment_is_shown_as_it_was_written(path, value, monkeypatch):
    monkeypatch.setenv("SJ_KEY", SECRET)
    text = message(MINIMAL | nested(path, value))
    assert SECRET not in text
    assert "${SJ_KEY}" in text


def test_variables_are_refused_in_lists_of_the_recipe():
    text = message(MINIMAL | nested("recipe.variants.scale_percent", [4, "${SJ_SCALE}"]))
    assert "recipe.variants.scale_percent[1]: ${...} is not allowed in the recipe" in text


# --- Secrets ---


def test_secrets_are_not_shown_by_the_spec_itself():
    spec = parse_spec(
        MINIMAL | {"runtime": {"storage": {"access_key_id": SECRET, "secret_access_key": SECRET, "region": "here"}}}
    )
    for text in (repr(spec), str(spec), spec.model_dump_json(), repr(spec.model_dump())):
        assert "here" in text
        assert SECRET not in text


@pytest.mark.parametrize(
    "data",
    [
        nested("runtime.storage.secret_access_key", SECRET),
        nested("runtime.storage.secret_access_key", [SECRET]),
        nested("runtime.storage.secret_acess_key", SECRET),
        nested("runtime.storage.session_token", SECRET),
        nested("runtime.secret_access_key", SECRET),
        nested("runtime.password", SECRET),
        nested("storage.secret_access_key", SECRET),
        nested("recipe.storage", {"secret_access_key": SECRET}),
    ],
)
def test_secrets_are_not_shown_by_errors_even_in_the_wrong_place(data):
    text = message(MINIMAL | data)
    assert SECRET not in text
    assert len(text.splitlines()) > 1


@pytest.mark.parametrize(
    "override",
    [
        f"runtime.storage.secret_access_key=[{SECRET}",
        f"runtime..secret_access_key={SECRET}",
        "runtime.storage.secret_access_key.x=1",
    ],
)
def test_secrets_are_not_shown_by_errors_of_overrides_or_yaml(tmp_path, override):
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(MINIMAL | nested("runtime.storage.secret_access_key", SECRET)))
    with pytest.raises(SpecError) as caught:
        load_spec(path, [override])
    assert SECRET not in str(caught.value)
    path.write_text(f"runtime: {{storage: {{secret_access_key: {SECRET}: ]")
    with pytest.raises(SpecError, match="at line 1") as caught:
        load_spec(path)
    assert SECRET not in str(caught.value)


# --- What is hashed ---

CHANGES = {
    "models.stable_diffusion.path": "elsewhere/sd",
    "models.stable_diffusion.revision": "abc",
    "models.stable_diffusion.variant": "fp16",
    "models.stable_diffusion.dtype": "float16",
    "models.depth.path": "elsewhere/depth",
    "models.depth.revision": "abc",
    "models.depth.dtype": "bfloat16",
    "models.depth.polarity": "metric",
    "method.steps": 49,
    "method.guidance_scale": 6.5,
    "method.pair_guidance_scale": 2.0,
    "method.photo_guidance_scale": 2.0,
    "method.scheduler": "dpm++",
    "method.inversion": "ddim",
    "method.null_text_iterations": 9,
    "method.geometry": "metric",
    "method.refine_edges": False,
    "method.warp": "subpixel",
    "method.warp_condition": False,
    "method.two_pass": True,
    "method.rims": False,
    "method.composite": False,
    "method.hole_detail": True,
    "method.fill": "noise",
    "method.shift_step": 9,
    "method.shift_both": True,
    "method.recopy_interval": 5,
    "method.recopy_last_step": 30,
    "method.attention": "bi",
    "method.attention_step": 11,
    "method.keep_left": False,
    "seed": 1,
    "scale_percent": {"min": 4, "max": 8},
    "variants.seeds": 2,
    "variants.scale_percent": [4, 8],
    "size": {"width": 64, "height": 64},
    "negative_prompt": "blurry",
    "disparity_scale": 256,
    "disparity_encoding": "foundation_stereo",
    "disparity_unknown": 65535,
    "resize_maps": "nearest",
    "mode": "image",
    "method.preset": "official",
    "method.right_view": "stretch",
    "models.safety_checker": True,
    "models.clip": {"path": "elsewhere/clip"},
    "quality.enabled": False,
    "quality.drop_rejected": True,
    **{
        f"quality.{name}": 0.5 if field.default is None else None
        for name, field in QualityConfig.model_fields.items()
        if name.startswith(("min_", "max_"))
    },
}
TOGETHER_WITH = {
    "method.shift_both": {"method": {"composite": False}},
    "method.geometry": {"mode": "image"},
    "quality.min_clip": {"models": {"clip": {"path": "elsewhere/clip"}}},
}
"""What a field's other value needs to be allowed."""
ONLY_ONE_VALUE = {"format"}


def leaves(data, path=""):
    for key, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield path + key


@pytest.mark.parametrize("path", CHANGES)
def test_changing_any_field_changes_the_canonical_recipe(path):
    base = TOGETHER_WITH.get(path, {})
    group = path.rpartition(".")[0]
    changed = nested(path, CHANGES[path])
    if group in base:
        changed = {group: base[group] | changed[group]}
    recipe = parse_spec(MINIMAL | {"recipe": base | changed}).recipe
    assert digest(recipe.canonical()) != digest(Recipe.model_validate(base).canonical())


def test_the_canonical_recipe_holds_every_field_and_the_versions():
    assert set(leaves(Recipe().canonical())) == {*CHANGES, *ONLY_ONE_VALUE, "schema_version", "method_version"}


def test_the_canonical_recipe_ignores_spelling_and_runtime():
    written_out = Recipe().model_dump(mode="json") | {"scale_percent": 8}
    spec = parse_spec(MINIMAL | {"recipe": written_out, "runtime": {"batch_size": 7, "actors": 3}})
    assert digest(spec.recipe.canonical()) == digest(Recipe().canonical())
    assert Recipe.model_validate(json.loads(json.dumps(spec.recipe.model_dump(mode="json")))) == spec.recipe


def test_three_bytes_have_a_scale_of_their_own():
    with pytest.raises(
        ValueError, match="disparity_encoding foundation_stereo has a scale of its own; remove disparity_"
    ):
        Recipe(disparity_encoding="foundation_stereo", disparity_scale=256)


# --- Documentation ---


def models_below(model):
    yield model
    for field in model.model_fields.values():
        for option in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(option, type) and issubclass(option, BaseModel):
                yield from models_below(option)


def test_every_field_has_a_description():
    models = set(models_below(JobSpec))
    assert {"JobSpec", "MethodConfig", "StorageSpec", "ScaleRange", "ActorRange"} <= {m.__name__ for m in models}
    assert not [
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if not field.description
    ]


def test_the_json_schema_is_plain_json_and_names_every_model():
    schema = json.loads(json.dumps(JobSpec.model_json_schema()))
    assert {model.__name__ for model in models_below(JobSpec)} - {"JobSpec"} == set(schema["$defs"])
    assert schema["required"] == ["manifest", "output"]
