"""Job specs that are wrong in every way, through `stereo-jobs spec` and `stereo-jobs plan --dry-run`.

A valid spec is mutated as data (a value, a key or an override becomes a snippet of YAML or JSON) or as text (bytes,
lines, encodings, a whole other document). Some specs also have odd names as files.
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.fuzz.cases import Record, command

BASES: tuple[dict[str, Any], ...] = (
    {"manifest": "rows.parquet", "output": "out"},
    {
        "manifest": ["rows.parquet", "more/*.parquet"],
        "output": "out",
        "recipe": {
            "mode": "text",
            "seed": 7,
            "scale_percent": {"min": 2.0, "max": 8.0},
            "size": {"width": 64, "height": 64},
            "variants": {"seeds": 2},
            "negative_prompt": "blurred",
            "models": {"stable_diffusion": {"path": "demo"}, "depth": {"path": "demo", "polarity": "auto"}},
            "method": {"preset": "paper", "attention": "bi"},
            "quality": {"enabled": False},
        },
        "runtime": {"actors": {"min": 1, "max": 2}, "batch_size": 2, "shard_rows": 3, "lease_ttl_s": 20.0},
    },
    {
        "manifest": "rows.parquet",
        "output": "file:out",
        "recipe": {"scale_percent": 6.0, "variants": {"scale_percent": [4.0, 6.0]}, "models": {"clip": None}},
        "runtime": {
            "device": "cpu",
            "allowed_prefixes": ["images"],
            "max_failure_ratio": 0.5,
            "log_format": "text",
            "storage": {"endpoint_url": "http://127.0.0.1:9", "region": "none-1"},
        },
    },
    {  # without credentials, so that no request leaves
        "manifest": "rows.parquet",
        "output": "s3://bucket/prefix",
        "runtime": {"storage": {"endpoint_url": "http://127.0.0.1:9", "region": "none-1", "profile": None}},
    },
)

NUMBERS = {
    **{text: text for text in ("-1", "0", "-0.0", ".nan", ".inf", "-.inf", "1e999", "-1e999", "1e-999", "0x", "0o9")},
    **{
        text: text
        for text in ("1_000", "190:20:30", "1.5e308", "1e4300", "9223372036854775808", "18446744073709551616")
    },
    "5000 digits": "1" * 5000,
    "5000 digits below 0": "-" + "1" * 5000,
    "4000 digits": "1" * 4000,
    "400 digits": "1" + "0" * 400,
    "5000 digits of hex": "0x" + "f" * 5000,
    "50,000 digits of binary": "0b" + "1" * 50_000,
    "5000 digits of octal": "0" + "7" * 5000,
    "5000 digits of a fraction": "0." + "3" * 5000,
    "sexagesimal number": ":".join(["1"] + ["59"] * 2000),
}
DATES = {
    text: text
    for text in (
        *("2001-01-01", "2001-12-14t21:59:43.10-05:00", "9999-99-99", "0000-00-00", "2001-13-01", "2001-02-30"),
        *("2001-01-01 25:00:00", "2001-01-01 00:00:00 +99:99", "9999-12-31 23:59:59 -23:59", "0001-01-01 00:00:00 +23"),
    )
}
TAGS = {
    text: text
    for text in (
        *("!!python/object/apply:os.system [id]", "!!python/name:os.system", "!!binary aGVsbG8=", "!!binary '*'"),
        *("!!binary é", "!!set {a, b}", "!!omap [a: 1]", "!!omap [1]", "!!pairs [a: 1]", "!!pairs x", "!!timestamp x"),
        *("!!int x", "!!int ''", "!!int '-'", "!!int '0x'", "!!int '1:a'", "!!int [1]", "!!float x", "!!float ''"),
        *("!!bool x", "!!bool ''", "!!null x", "!!str 12", "!!str [1]", "!!map [1]", "!!seq {a: 1}", "!!merge x"),
        *("!unknown x", "!<tag:x> y", "!!value =", "=", "<<", "!", "!!", "!!float '0:'", "!!float '-'", "!!float '.'"),
        *("!!timestamp '2001-99-99'", "!!timestamp ''", "!!binary [1]", "!!set [a]", "!!int '0b'", "!!int '_'"),
    )
}


def _bomb(levels: int) -> str:
    """Aliases of aliases: ten times as many values at each level."""
    parts = ["l0: &l0 [" + ", ".join("x" * 10) + "]"]
    parts += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "{" + ", ".join(parts) + "}"


def _bomb_of_maps(levels: int) -> str:
    parts = ["l0: &l0 {a: 1, b: 2}"]
    parts += [f"l{i}: &l{i} {{a: *l{i - 1}, b: *l{i - 1}, c: *l{i - 1}}}" for i in range(1, levels)]
    return "{" + ", ".join(parts) + "}"


def _merge_bomb(levels: int) -> str:
    parts = ["l0: &l0 {a: 1}"]
    parts += [f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 9)}]}}" for i in range(1, levels)]
    return "{" + ", ".join(parts) + "}"


ALIASES = {
    "a list in itself": "&a [*a]",
    "a mapping in itself": "&a {x: *a}",
    "a mapping in itself, deeper": "&a {x: [1, {y: *a}]}",
    "two lists in each other": "&a [&b [*a], *b]",
    "a list in itself, as a key": "{? &a [*a] : 1}",
    "an unknown alias": "*missing",
    "an anchor twice": "[&a 1, &a 2, *a]",
    "a merge of itself": "&a {<<: *a}",
    "a merge of a number": "{<<: 1}",
    "a merge of a list of numbers": "{<<: [1, 2]}",
    "an alias bomb of 4 levels": _bomb(4),
    "an alias bomb of 9 levels": _bomb(9),
    "an alias bomb of mappings": _bomb_of_maps(30),
    "a bomb of merges": _merge_bomb(8),
    "one string 1000 times": f"[&a {'x' * 1000}, {', '.join(['*a'] * 1000)}]",
}
DEEP = {
    **{f"{n} brackets": "[" * n + "]" * n for n in (50, 300, 900, 3000, 100_000)},
    **{f"{n} braces": "{a: " * n + "1" + "}" * n for n in (50, 300, 900, 3000)},
    **{f"{n} brackets that stay open": "[" * n for n in (50, 900, 100_000)},
    "900 question marks": "? " * 900,
    "3000 dashes": "\n" + "- " * 3000 + "1",
}
TEXTS = {
    "NUL": '"\\0"',
    "NUL inside": '"a\\0b"',
    "NUL in a file's name": '"rows\\0.parquet"',
    "colours": '"\\e[31mred\\e[0m"',
    "title of a terminal": '"\\e]0;title\\a"',
    "a C1 control": '"a\\x9b31mb"',
    "DEL": '"a\\x7fb"',
    "carriage return": '"good\\rbad"',
    "next line": '"a\\x85b\\u2028c"',
    "bidi override": '"abc\\u202Etxt"',
    "bidi isolate": '"\\u2066abc"',
    "a lone surrogate": '"a\\uD800b"',
    "a surrogate escape": '"rows\\uDCFF.parquet"',
    "a pair of surrogates": '"\\uD83D\\uDE00"',
    "not a character": '"\\uFFFF\\U0010FFFF"',
    "backspaces": '"a\\b\\b\\b"',
    "new lines": '"a\\n\\nb"',
    "an unknown user": "~nobody-at-all/x",
    "an unknown user in a URI": "file://~nobody-at-all/x",
    "NUL in a user": '"~a\\0b/x"',
    "100,000 characters": "x" * 100_000,
    "a long name": "x" * 300 + ".parquet",
    "5000 folders": "a/" * 5000 + "x",
    **{
        text: text
        for text in (
            *("'~'", "'~/x'", "file://host/x", "file://", "file:///etc", "file:x", "s3://", "s3:///", "s3:///x"),
            *("s3://BAD_bucket/x", "s3://bucket/../x", "s3://bucket/%00", "http://x/y", "gs://b/x", "://", "x://"),
            *(
                "'${HOME}'",
                "'${NOT_SET_ANYWHERE}'",
                "'${'",
                "'${}'",
                "'$HOME'",
                "/dev/null",
                "/dev/zero",
                "/etc/passwd",
            ),
            *("/dev/null/x", "'.'", "'..'", "''", "' '", "'*'", "'['", "'[]'", "'[!'", "'***/*'", "'?'", "'{a,b}'"),
            *("rows.parquet/", "rows.parquet/x", "'%s%n'", "'{}'", "'[bold]x[/bold]'", "'[/]'", "'[link=x]'", "'\\'"),
            *("owner/name", "../x/..", "'a b'", "'-x'", "'--help'", "user:password@host", "http://u:p@127.0.0.1:9"),
            *("'http://'", "'http://['", "'http://[::1'", "'http://127.0.0.1:99999'", "'http://\u2066'", "'ftp://x'"),
        )
    },
}
TYPES = {
    text: text
    for text in (
        *(
            "null",
            "true",
            "no",
            "1",
            "1.5",
            "text",
            "[]",
            "{}",
            "[1, 2]",
            "[null]",
            "{a: 1}",
            "[[1]]",
            "[{}]",
            "{1: 2}",
        ),
        *(
            "{null: 1}",
            "{[1]: 2}",
            "{? [1, 2] : 3}",
            "{? {a: b} : 3}",
            "{2001-01-01: 1}",
            "{.nan: 1, .nan: 2}",
            "{true: 1}",
        ),
        *(
            "[a, b, c]",
            "{min: 1}",
            "{min: 2, max: 1}",
            "{min: .nan, max: .nan}",
            "{min: 1, max: 2, mid: 3}",
            "'1'",
            "'8.0'",
        ),
    )
}
SNIPPETS: dict[str, dict[str, str]] = {
    "number": NUMBERS,
    "date": DATES,
    "tag": TAGS,
    "alias": ALIASES,
    "depth": DEEP,
    "text": TEXTS,
    "type": TYPES,
}
"""Kind -> what it is -> YAML that stands for a value. Most of it also parses, as something, in a JSON file."""

DOCUMENTS: dict[str, bytes] = {
    "nothing": b"",
    "one newline": b"\n",
    "a comment": b"# nothing\n",
    "an empty document": b"---\n...\n",
    "two documents": b"manifest: rows.parquet\noutput: out\n---\nmanifest: rows.parquet\noutput: out\n",
    "null": b"null",
    "a word": b"word",
    "a list": b"[1, 2]",
    "a set": b"!!set {manifest, output}",
    "a mapping in itself": b"&a {manifest: rows.parquet, output: out, recipe: *a}",
    "a mapping in itself as runtime": b"&a\nmanifest: rows.parquet\noutput: out\nruntime: *a\n",
    "the same recipe twice": b"manifest: &m rows.parquet\noutput: *m\n",
    "an unknown version of YAML": b"%YAML 9.9\n---\nmanifest: rows.parquet\noutput: out\n",
    "an unknown directive": b"%X y\n---\nmanifest: rows.parquet\noutput: out\n",
    "a tag directive": b"%TAG ! tag:x,2000:\n--- !a\nmanifest: rows.parquet\n",
    "100,000 brackets": b"[" * 100_000,
    "3000 braces": b"{a: " * 3000,
    "one key 1000 times": b"manifest: rows.parquet\n" * 1000,
    "1000 keys": b"".join(b"key%d: 1\n" % i for i in range(1000)),
    "a key of 100 kB": b"k" * 100_000 + b": 1\n",
    "a value of 20 MB": b"manifest: " + b"v" * 20_000_000 + b"\noutput: out\n",
    "an alias bomb": b"manifest: rows.parquet\noutput: out\nrecipe: " + _bomb(9).encode(),
    "an alias bomb as runtime": b"manifest: rows.parquet\noutput: out\nruntime: " + _bomb(9).encode(),
    "an alias bomb as manifests": b"output: out\nmanifest: " + _bomb(9).encode(),
    "an alias bomb of an unknown key": b"manifest: rows.parquet\noutput: out\nmore: " + _bomb(9).encode(),
    "a bomb of merges": b"manifest: rows.parquet\noutput: out\nruntime: " + _merge_bomb(8).encode(),
    "a Parquet file": b"PAR1" + bytes(range(256)) + b"PAR1",
    "a PNG": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "NULs": bytes(100),
    "bytes that are not UTF-8": b"manifest: \xff\xfe\xfd\noutput: out\n",
    "a key that is not UTF-8": b"man\xc3ifest: x\n",
    "a long surrogate": b"manifest: \xed\xa0\x80\noutput: out\n",
    "controls as they are": b"manifest: \x1b[31mx\x07\noutput: out\n",
    "a C1 control as it is": "manifest: \u009b31mx\noutput: out\n".encode(),
    "a bidi override as it is": "manifest: rows.parquet\noutput: out\n\u202ekey: 1\n".encode(),
    "a bidi override in a comment": "manifest: rows.parquet # \u202e\noutput: out\n".encode(),
    "tabs": b"manifest:\trows.parquet\noutput:\n\tx: 1\n",
    "HTML": b"<html><body>&nbsp;</body></html>",
    "only quotes": b'"' * 999,
    "a block scalar without an end": b"manifest: |9\n x\noutput: >+\n",
}

ODD_NAMES: dict[str, bytes] = {
    "colours": b"\x1b[31mspec.yaml",
    "not UTF-8": b"spec-\xff.yaml",
    "bidi override": "spec-\u202elmay.yaml".encode(),
    "a new line": b"spec\nerror: fine.yaml",
    "a C1 control": "spec-\u009b1m.yaml".encode(),
    "markup": b"[red]spec[bold].yaml",
    "a percent sign": b"%s%n.yaml",
    "a dash": b"-spec.yaml",
    "spaces": b"  .yaml",
    "a long name": b"s" * 250 + b".yaml",
    "a folder": b"folder",
    "nothing there": b"missing-\x1b[31m\xff.yaml",
    "a name too long": b"s" * 5000,
    "an unknown user": b"~nobody-at-all/spec.yaml",
    "a device": b"/dev/null",
}


def work(rng: random.Random, folder: Path, record: Record) -> None:
    """Write one mutated spec; check it with both commands."""
    _write_manifests(folder)
    text, made = make(rng)
    name, named = b"spec.yaml", ""
    if rng.random() < 0.06:
        named, name = rng.choice(list(ODD_NAMES.items()))
    overrides, set_to = _overrides(rng) if rng.random() < 0.15 else ([], "")
    record.note("; ".join(part for part in (made, named and f"file named with {named}", set_to) if part))
    _write_spec(folder, name, text)
    spec = os.fsdecode(name)
    command(record, "spec", spec, *overrides)
    command(record, "plan", spec, "--dry-run", *overrides, *(["--json"] if rng.random() < 0.3 else []))


def _write_manifests(folder: Path) -> None:
    table = pa.table({"id": ["a", "b"], "prompt": ["a cube", "a ball"]})
    pq.write_table(table, folder / "rows.parquet")
    (folder / "more").mkdir()
    pq.write_table(pa.table({"id": ["c"], "prompt": ["a cone"]}), folder / "more" / "some.parquet")
    # A folder of manifests may hold any name that the file system takes.
    (folder / "odd").mkdir()
    for name in (b"\xff.parquet", b"\x1b[31m.parquet", b"a\nb.parquet"):
        (folder / "odd" / os.fsdecode(name)).write_bytes((folder / "rows.parquet").read_bytes())


def _write_spec(folder: Path, name: bytes, text: bytes) -> None:
    """Write the spec under its name, where that can be done; always also where people find it."""
    (folder / "spec.yaml").write_bytes(text)
    if name == b"folder":
        (folder / "folder").mkdir()
    elif not name.startswith((b"missing", b"/", b"~")) and len(name) < 256:
        (folder / os.fsdecode(name)).write_bytes(text)


# --- The text of a spec ---


def make(rng: random.Random) -> tuple[bytes, str]:
    """The bytes of a spec, and how it was made."""
    if rng.random() < 0.12:
        made, text = rng.choice(list(DOCUMENTS.items()))
        return text, f"document: {made}"
    text, made = _mutated_data(rng)
    if rng.random() < 0.3:
        change = rng.choice(TEXT_CHANGES)
        text = change(rng, text)
        made = f"{made}; {change.__name__.strip('_').replace('_', ' ')}"
    return text, made


def _mutated_data(rng: random.Random) -> tuple[bytes, str]:
    """A valid spec in which some values, or keys, are snippets."""
    data = json.loads(json.dumps(rng.choice(BASES)))
    made, snippets = [], {}
    for i in range(rng.choice((0, 1, 1, 1, 1, 2, 3))):
        kind = rng.choice(list(SNIPPETS))
        what, text = rng.choice(list(SNIPPETS[kind].items()))
        mark = f"@@{i}@@"
        snippets[mark] = text
        path = _put(rng, data, mark)
        made.append(f"{path} = {what[:60]}")
    if rng.random() < 0.1:
        data["manifest"] = rng.choice(("odd", "odd/*", ["odd", "rows.parquet"]))
        made.append(f"manifests {data['manifest']}")
    text = _dump(rng, data)
    for mark, snippet in snippets.items():
        text = text.replace(f"'{mark}'", snippet).replace(f'"{mark}"', snippet).replace(mark, snippet)
    return text.encode(errors="surrogatepass"), ", ".join(made) or "valid"


def _dump(rng: random.Random, data: dict[str, Any]) -> str:
    form = rng.choice(("yaml", "yaml", "flow", "json"))
    if form == "json":
        return json.dumps(data, indent=rng.choice((None, 1)))
    return yaml.safe_dump(data, sort_keys=False, width=10**6, default_flow_style=form == "flow")


def _put(rng: random.Random, data: dict[str, Any], mark: str) -> str:
    """Put a mark somewhere into the data: for a value, an item, a key, or as a further field; returns where."""
    places = list(_places(data, ""))
    holder, key, path = rng.choice(places)
    how = rng.random()
    if how < 0.7:
        holder[key] = mark
        return path
    if how < 0.85 and isinstance(holder, dict):
        holder[mark] = holder.pop(key)
        return f"the key of {path}"
    if isinstance(holder, dict):
        known = ("manifest", "output", "recipe", "runtime", "mode", "seed", "storage", "region", "actors", "size", "x")
        name = rng.choice(known)
        holder[name] = mark
        return f"{path.rpartition('.')[0]}.{name}"
    holder.append(mark)
    return f"{path} and one more"


def _places(node: Any, path: str) -> "list[tuple[Any, Any, str]]":
    """Holder, key and path of every value below a node."""
    items: list[tuple[Any, Any]] = (
        list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
    )
    found = []
    for key, value in items:
        here = f"{path}.{key}" if path else str(key)
        found += [(node, key, here), *_places(value, here)]
    return found


# --- Changes of the text ---


def _bytes_flipped(rng: random.Random, text: bytes) -> bytes:
    data = bytearray(text)
    for _ in range(rng.randrange(1, 9)):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _bits_flipped(rng: random.Random, text: bytes) -> bytes:
    data = bytearray(text)
    for _ in range(rng.randrange(1, 4)):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut_short(rng: random.Random, text: bytes) -> bytes:
    return text[: rng.randrange(len(text) + 1)]


def _bytes_put_in(rng: random.Random, text: bytes) -> bytes:
    at = rng.randrange(len(text) + 1)
    odd = (b"\0", b"\xff", b"\x1b[31m", b"\t", b"\r", b"\r\n", b"\xc2\x85", b"\xe2\x80\xae", b"\xef\xbb\xbf")
    odd += (
        b"&a ",
        b"*a",
        b"!!",
        b": ",
        b"- ",
        b"'",
        b'"',
        b"{",
        b"]",
        b"|",
        b">",
        b"%",
        b"@",
        b"`",
        b"# ",
        b"? ",
        b"\n---\n",
    )
    return text[:at] + rng.choice(odd) * rng.choice((1, 1, 1, 3, 100)) + text[at:]


def _a_line_twice(rng: random.Random, text: bytes) -> bytes:
    lines = text.splitlines(keepends=True) or [b"\n"]
    at = rng.randrange(len(lines))
    return b"".join([*lines[: at + 1], *([lines[at]] * rng.choice((1, 1, 50))), *lines[at + 1 :]])


def _a_line_less(rng: random.Random, text: bytes) -> bytes:
    lines = text.splitlines(keepends=True) or [b"\n"]
    at = rng.randrange(len(lines))
    return b"".join(lines[:at] + lines[at + 1 :])


def _lines_mixed(rng: random.Random, text: bytes) -> bytes:
    lines = text.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def _indented_otherwise(rng: random.Random, text: bytes) -> bytes:
    lines = text.splitlines(keepends=True) or [b"\n"]
    at = rng.randrange(len(lines))
    lines[at] = rng.choice((b" ", b"   ", b"\t", b"        ")) + lines[at]
    return b"".join(lines)


def _in_another_encoding(rng: random.Random, text: bytes) -> bytes:
    words = text.decode(errors="replace")
    encoding = rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp037", "utf-7"))
    return words.encode(encoding, "replace")


def _with_other_line_ends(rng: random.Random, text: bytes) -> bytes:
    return text.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\xc2\x85", b"\xe2\x80\xa8", b"\n\n", b"")))


TEXT_CHANGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _bytes_flipped,
    _bits_flipped,
    _cut_short,
    _bytes_put_in,
    _a_line_twice,
    _a_line_less,
    _lines_mixed,
    _indented_otherwise,
    _in_another_encoding,
    _with_other_line_ends,
)


# --- Overrides ---

PATHS = (
    *("recipe.seed", "recipe.size", "recipe.size.width", "recipe.method", "runtime.actors", "runtime.storage.region"),
    *("manifest", "output", "recipe", "runtime", "recipe.scale_percent.min", "runtime.storage.secret_access_key"),
    *("", ".", "a..b", "recipe.", ".recipe", "recipe.seed.x", "manifest.0", "a." * 5000 + "a", "\x1b[31mx", "\u202ex"),
    *(
        "recipe.se\ud8ffed",
        "rec\udcffipe",
        "a b",
        "runtime.batchsize",
        "0",
        "null",
        "[a]",
        "*",
        "recipe.variants.seeds",
    ),
)


def _overrides(rng: random.Random) -> tuple[list[str], str]:
    """`--set` with a path and a value, one or both of them odd; no command line can hold a NUL."""
    path = rng.choice(PATHS)
    kind = rng.choice(list(SNIPPETS))
    what, text = rng.choice(list(SNIPPETS[kind].items()))
    form = rng.choice(
        ("{path}={text}", "{path}={text}", "{path}={text}", "{path}", "={text}", "{path}=", "{path}=={text}")
    )
    word = form.replace("{path}", path).replace("{text}", text[:100_000]).replace("\0", "")
    return ["--set", word], f"--set {path[:40]!r} = {what[:60]}"
